"""Several processes in one folder: they share the work or take names of their own."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli import generate
from ldm.images.files import digest, load_image
from ldm.output import Output
from ldm.writing import claim
from tests.helpers.files import names
from tests.helpers.together import together

COUNT = 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def options(folder: Path, *more: str) -> list[str]:
    common = ["--model", str(folder), "--steps", "1", "--dtype", "float32", "--seed", "3"]
    return [*common, "--batch-size", "2", "--threads", "1", "--quiet", *more]


def run(folder: Path, *argv: str) -> int:
    return generate.main(options(folder, *argv))


def files() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in names()}


def test_they_share_the_work(folder: Path, tmp_path: Path) -> None:
    """Each picture is drawn once, by one of them, and all are there when the last one ends."""
    Path("../p.txt").write_text("\n".join(f"thing {i}" for i in range(12)))
    argv = options(folder, "--prompts", "../p.txt", "--save-steps", "--skip-existing")
    assert generate.main(argv) == 0
    whole = files()
    assert len(whole) == 24
    for name in whole:
        Path(name).unlink()
    for kept in list(whole)[:5]:  # a run that was stopped
        Path(kept).write_bytes(whole[kept])
    argv.remove("--quiet")
    codes, lines, errors = together(COUNT, tmp_path / "logs", *argv)
    assert codes == [0] * COUNT, errors
    assert files() == whole
    drawn = map(int, re.findall(r"^(\d+) pictures? in", errors, re.MULTILINE))
    assert sum(drawn) == 10  # of 12, as the first batch was done
    assert sorted(lines) == sorted(set(whole) - set(list(whole)[:5]))


def test_free_names(folder: Path, tmp_path: Path) -> None:
    codes, lines, errors = together(
        COUNT, tmp_path / "logs", *options(folder, "a", "b", "--save-steps")
    )
    assert codes == [0] * COUNT, errors
    pictures = [name for name in names() if "steps" not in name]
    assert sorted(lines) == names() and len(pictures) == 2 * COUNT
    for name in pictures:
        assert Path(name).with_stem(f"{Path(name).stem}-steps").is_file()
    found = Counter(digest(load_image(name)) for name in pictures)
    assert list(found.values()) == [COUNT, COUNT]


def test_force(folder: Path, tmp_path: Path) -> None:
    Path("a-3.png").write_text("old")
    codes, lines, errors = together(COUNT, tmp_path / "logs", *options(folder, "a", "--force"))
    assert (codes, lines, names()) == ([0] * COUNT, ["a-3.png"] * COUNT, ["a-3.png"]), errors
    load_image("a-3.png")


def test_one_name_for_all(folder: Path, tmp_path: Path) -> None:
    codes, lines, errors = together(COUNT, tmp_path / "logs", *options(folder, "a", "-o", "a.png"))
    assert sorted(codes) == [0] + [1] * (COUNT - 1)
    assert lines == names() == ["a.png"]
    messages = errors.strip().splitlines()
    assert len(messages) == COUNT - 1
    for message in messages:
        assert "is drawn by another process" in message or "already exists" in message


def test_a_name_that_is_claimed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claim(Path("a.png")) as granted:
        assert granted and run(folder, "a", "-o", "a.png") == 1
        assert "a.png is drawn by another process" in capsys.readouterr().err
        assert run(folder, "a", "-o", "a.png", "--force") == 0
    Path("a.png").unlink()
    assert run(folder, "a", "-o", "a.png") == 0
    assert names() == ["a.png"]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_picture_without_its_strip_is_not_done(folder: Path, ending: str) -> None:
    """It is drawn again, found to be the same, and kept; its strip is written."""
    argv = ["a", "b", "-o", f"{{prompt}}.{ending}", "--skip-existing", "--save-steps"]
    assert run(folder, *argv) == 0
    whole = files()
    assert len(whole) == 4
    Path("b-steps.png").unlink()
    os.utime(f"b.{ending}", (1, 1))
    assert run(folder, *argv) == 0
    assert files() == whole and Path(f"b.{ending}").stat().st_mtime == 1


@pytest.mark.parametrize("content", ["another picture", "damaged"])
def test_no_strip_beside_another_picture(
    folder: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content == "damaged":
        Path("a.png").write_text("mine")
    else:
        Image.new("RGB", (64, 64), "red").save("a.png")
    kept = files()
    assert run(folder, "a", "-o", "a.png", "--skip-existing", "--save-steps") == 1
    error = capsys.readouterr().err
    assert "a.png is not the picture that is drawn now, of which a-steps.png is missing" in error
    assert files() == kept


def test_another_process_is_quicker_without_claims(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a drive without locks: a name of its own, or nothing more to do."""
    from ldm.cli import saving

    write = saving.write_picture

    def late(picture: Image.Image, path: Path, *rest: object, **named: object) -> None:
        if not path.exists() and "-2" not in path.stem:
            shutil.copy("../theirs.png", path)
        write(picture, path, *rest, **named)

    Image.new("RGB", (64, 64), "red").save("../theirs.png")
    monkeypatch.setattr(saving, "write_picture", late)
    assert run(folder, "a") == 0
    assert capsys.readouterr().out == "a-3-2.png\n"
    assert names() == ["a-3-2.png", "a-3.png"]
    assert run(folder, "b", "--skip-existing") == 0
    theirs = Path("../theirs.png").read_bytes()
    assert Path("b-3.png").read_bytes() == theirs == Path("a-3.png").read_bytes()


def test_outputs_of_threads() -> None:
    output = Output([Image.new("RGB", (8, 8))] * 3, [1, 2, 3], ["a"] * 3)
    with ThreadPoolExecutor(8) as threads:
        saved = [
            path for paths in threads.map(lambda _: output.save("x"), range(8)) for path in paths
        ]
    assert len(set(saved)) == 24 and sorted(path.name for path in saved) == names(Path("x"))
