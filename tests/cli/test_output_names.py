"""Names of files: templates, free names, and what climbs or is too long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.cli import generate
from tests.helpers.files import names

Command = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Command:
    """Run it in an empty folder → (exit code, lines of stdout, stderr)."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*argv: str) -> tuple[int, list[str], str]:
        code = generate.main(["--model", str(folder), "--steps", "1", "--quiet", *argv])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return call


@pytest.mark.parametrize(
    ("template", "argv", "want"),
    [
        ("out/{prompt}-{seed}.png", [], ["out/a-cat-7.png", "out/a-dog-8.png"]),
        ("{number:03}.webp", [], ["001.webp", "002.webp"]),
        ("{seed:04}.png", [], ["0007.png", "0008.png"]),
        ("{prompt}/{steps}/", [], ["a-cat/1/a-cat-7.png", "a-dog/1/a-dog-8.png"]),
        ("x{{{number}}}.png", [], ["x{1}.png", "x{2}.png"]),
        ("{sampler}-{guidance}-{width}.png", ["--sampler", "DPM++ 2M", "-g", "2", "-W", "64"],
         ["DPM++-2M-2-64.png", "DPM++-2M-2-64-2.png"]),
        ("same.{steps}.png", [], ["same.1.png", "same.1-2.png"]),
    ],
)  # fmt: skip
def test_templates(command: Command, template: str, argv: list[str], want: list[str]) -> None:
    code, out, err = command("a cat", "a dog", "--seed", "7", "-o", template, *argv)
    assert (code, out) == (0, want), err
    assert all(Path(name).is_file() for name in want)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{promt}.png", "unknown field {promt}; did you mean 'prompt'?"),
        ("{}.png", "unknown field {}"),
        ("{seed.__class__}.png", "unknown field {seed.__class__}"),
        ("{prompt!r}.png", "{prompt} has a wrong format"),
        ("{prompt:9999999}.png", "{prompt} has a wrong format"),
        ("{number:999999999}.png", "{number} has a wrong format"),
        ("{seed.png", "is no template; write {{ or }} for a brace"),
        ("{width}.png", "has {width}, but --width is not given"),
        ("../{seed}.png", "climbs out of its folder"),
        ("out/{seed}/../../../x.png", "climbs out of its folder"),
        ("{seed}" * 90 + ".png", "makes a name that is too long"),
    ],
)
def test_templates_that_are_refused(command: Command, template: str, message: str) -> None:
    code, out, err = command("a cat", "--seed", "1234567", "-o", template)
    assert (code, out) == (2, [])
    assert message in err
    assert sorted(Path("..").iterdir()) == [Path("../here")] and names() == []


@pytest.mark.parametrize("prompt", ["../../up", "/etc/passwd", "..", "a\\..\\b", "x\0y", "é" * 400])
@pytest.mark.parametrize("output", ["{prompt}-{prompt}.png", "out/"])
def test_prompts_stay_in_their_folder(command: Command, prompt: str, output: str) -> None:
    code, out, err = command(prompt, "--seed", "1", "-o", output)
    assert code == 0, err
    (name,) = out
    inside = Path(name).relative_to("out" if output == "out/" else ".")
    assert len(inside.parts) == 1 and len(inside.name.encode()) <= 250
    assert sorted(Path("..").iterdir()) == [Path("../here")]


def test_free_names(command: Command) -> None:
    """Drawn again where it lies, a picture takes the next name, and overwrites none."""
    assert command("a cat", "--seed", "7", "--save-steps")[1][0] == "a-cat-7.png"
    before = Path("a-cat-7.png").read_bytes()
    assert command("--from", "a-cat-7.png")[:2] == (0, ["a-cat-7-2.png"])
    Path("a-cat-7-3-steps.png").write_text("mine")  # would be beside the next one
    code, out, _ = command("a cat", "--seed", "7", "--save-steps")
    assert (code, out) == (0, ["a-cat-7-4.png", "a-cat-7-4-steps.png"])
    Path("a-cat-7-3.png").symlink_to("nothing")
    assert command("a cat", "--seed", "7")[1] == ["a-cat-7-5.png"]
    assert Path("a-cat-7.png").read_bytes() == before == Path("a-cat-7-2.png").read_bytes()
    assert not Path("nothing").exists()


def test_names_that_are_given_are_not_changed(command: Command) -> None:
    Path("a.png").write_text("mine")
    code, out, err = command("a cat", "-o", "a.png")
    assert (code, out) == (1, []) and "a.png already exists" in err
    assert command("a cat", "-o", "{seed}.png", "--seed", "1")[1] == ["1.png"]
    assert command("a cat", "-o", "{seed}.png", "--seed", "1", "--force")[1] == ["1.png"]
    assert command("a cat", "-o", "{seed}.png", "--seed", "1", "--skip-existing")[1] == []
    assert names() == ["1.png", "a.png"]
