"""What counts as half-written, lost and left behind."""

from pathlib import Path

import pytest
from PIL import Image

from tools import kills
from tools.kills import Command, Counts, broken, is_temporary, lost, table, tree


def test_what_is_temporary() -> None:
    for name in (".ldm-a.part/x.png", "a/.x.json.partial", "checkpoints/0003.partial/state.json"):
        assert is_temporary(name)
    assert not is_temporary("out/a-7-steps.png")


def test_what_is_broken(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "cut.json").write_text('{"a": ')
    (tmp_path / "cut.safetensors").write_bytes(b"\x40" * 50)
    names = ["good.png", "cut.png", "cut.json", "cut.safetensors"]
    assert broken(tmp_path, names) == names[1:]


def test_what_is_lost(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    old = tree(tmp_path)
    (tmp_path / ".ldm-x.part").mkdir()
    (tmp_path / "out").rename(tmp_path / ".ldm-x.part" / "out")
    assert not lost(old, tree(tmp_path))  # the next run moves it back
    (tmp_path / ".ldm-x.part" / "out" / "a").write_text("half")
    assert lost(old, tree(tmp_path))


@pytest.mark.parametrize("whole", [True, False])
def test_a_writer_is_counted(whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that writes whole files, and one that does not."""

    def work() -> int:
        import time

        from ldm.writing import whole_file

        for path in (Path("a.txt"), Path("b.txt")):
            text = "x" * 3
            if whole:
                with whole_file(path) as new:
                    time.sleep(0.3)
                    new.write_text(text)
            else:
                with path.open("w") as file:
                    for letter in text:
                        file.write(letter)
                        file.flush()
                        time.sleep(0.1)
        return 0

    monkeypatch.setattr(kills, "call", lambda argv: work)
    counts = Counts("toy")
    kills.try_kills(Command([], (".txt",)), counts, 8, 0, tmp_path)
    assert counts.kills == 8 and counts.hit > 0 and counts.failed == counts.differ == 0
    assert bool(counts.half_written) != whole
    assert bool(counts.left) == whole and counts.left_after == 0
    assert "half_written" in table([counts])
