"""``ldm info``: pictures, the built-in model and its words, files of every kind."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli import generate, info, vocabulary
from ldm.cli.main import main
from ldm.images import save_image
from tools.builtin_model.icons.nouns import read_everyday
from tools.builtin_model.icons.split import read_eval_objects


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, str]:
    assert info.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    return {
        name.strip(): value.strip() for name, _, value in (line.partition("  ") for line in lines)
    }


@pytest.mark.parametrize(
    "argv",
    [
        ["a red car", "-n", "blue, 'grey'", "--sampler", "euler_a_karras", "-g", "3.5"],
        ["--prompt=-x y", "--deep-cache", "2", "--no-paste-back", "--guidance-interval", "0.3,5"],
        ["", "--variation-seed", "4", "--variation-strength", "0.3"],
    ],
)
def test_the_command_draws_the_picture_again(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    model = ["--model", str(folder), "--steps", "2", "--seed", "7", "-W", "72", "--quiet"]
    assert generate.main([*argv, *model, "-o", "a.png"]) == 0
    capsys.readouterr()
    found = rows(capsys, "a.png")
    assert found["picture"] == "a.png, PNG, 72x64" and found["drawn by"].startswith("ldm ")
    assert found["seed"] == "7" and found["model"] == folder.name
    name, *again = shlex.split(found["again"])
    again[again.index(folder.name)] = str(folder)  # where the model is, no picture says
    assert (name, main([*again, "-o", "b.png", "--quiet"])) == ("ldm", 0)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    short = shlex.split(found["or"])
    assert short == ["ldm", "generate", "--from", "a.png", "--model", folder.name]


def test_pictures_of_others(capsys: pytest.CaptureFixture[str], picture: Image.Image) -> None:
    """Without settings, with those of the web UI, under a wrong name; damaged ones are errors."""
    picture.save("plain.jpg")
    assert "it does not say how it was made" in rows(capsys, "plain.jpg")["settings"]
    text = "a cat\nSteps: 7, Sampler: Euler a, Seed: 3, CFG scale: 6, Size: 64x40, Model: dream"
    save_image(picture, "web.png", text)
    Path("web.png").rename("web.safetensors")
    found = rows(capsys, "web.safetensors")
    assert (found["drawn by"], found["prompt"]) == ("another program", "a cat")
    assert "--model dream" in found["again"] and "--num-inference-steps=7" in found["again"]
    Path("broken.png").write_bytes(Path("web.safetensors").read_bytes()[:900])
    assert info.main(["broken.png"]) == 1
    assert "broken.png" in capsys.readouterr().err


def test_files_of_other_kinds(
    folder: Path, capsys: pytest.CaptureFixture[str], picture: Image.Image
) -> None:
    Path("p.txt").write_text("a cat\n\na dog\n")
    assert rows(capsys, "p.txt")["draw"] == "ldm generate --prompts p.txt -o out/"
    Path("ldm.toml").write_text("steps = 3")
    assert rows(capsys, "ldm.toml")["num-inference-steps"] == "3"
    assert info.main(["nothing.png"]) == 1
    Path("train.toml").write_text("steps = 3")
    assert info.main(["train.toml"]) == 2
    assert "ldm train --config train.toml --dry-run" in capsys.readouterr().err
    Path("empty").mkdir()
    assert info.main(["empty"]) == 1
    assert "empty has no model_index.json" in capsys.readouterr().err
    picture.save("empty/a.png")
    Path("empty/model").symlink_to(folder)
    assert rows(capsys, "empty") | {"folder": ""} == {
        "folder": "",
        "pictures": "1",
        "models": "model",
    }
    assert rows(capsys, str(folder))["kind"] == "StableDiffusionPipeline"


# The built-in model


def test_what_it_knows(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys)
    assert found["things"].startswith(f"{len(read_everyday())} everyday ones: car, ")
    assert "purple" in found["colours"] and "3d" in found["styles"]
    assert info.main(["--words", "cat"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cat (kitten)" in lines and "caterpillar" in lines and "dog" not in lines
    assert info.main(["--words"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 1000
    assert info.main(["--words", "dogg"]) == 1
    assert "no 'dogg'; near are dog" in capsys.readouterr().err


def test_the_words_are_those_of_its_training() -> None:
    """weights/words.json has the whole table that the pictures were made from."""
    things = vocabulary.read_words()["things"]
    assert things == {noun.noun: list(noun.words) for noun in read_everyday()}
    for row in read_eval_objects():
        assert vocabulary.unknown_words(f"a red {row['word']}") == []


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a red car", []),
        ("Three blue birds on a green background, 3d", []),
        ("two (wooden:1.3) houses BREAK a [cat:dog:0.5] on the left", []),
        ("tomatoes, knives and children", []),
        ("a photo of a cute puppy’s face", []),
        ("ein rotes Auto", ["ein", "rotes", "Auto"]),
        ("hello", ["hello"]),
        ("a car in Paris", ["Paris"]),
        ("猫", ["猫"]),
        ("", []),
    ],
)
def test_unknown_words(prompt: str, unknown: list[str]) -> None:
    assert vocabulary.unknown_words(prompt) == unknown


def test_advice_on_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for the built-in model, none for others and under --quiet."""
    monkeypatch.setattr("ldm.checkpoints.source.asset_path", lambda name: folder)
    argv = ["ein rotes Auto", "a red car", "applle", "--steps", "1", "--seed", "1"]
    assert generate.main(argv) == 0
    (line,) = [row for row in capsys.readouterr().err.splitlines() if "warning" in row]
    assert "never learnt 'ein', 'rotes', 'Auto', 'applle'; near are 'automobile', 'apple'" in line
    for more in (["--quiet"], ["--model", str(folder)]):
        assert generate.main([*argv, *more]) == 0
        assert "never learnt" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a", "red", "car"], 'for one picture write "a red car" in quotes'),
        (
            ["prompts.txt"],
            "'prompts.txt' is drawn as a text; to read the file give it with --pr",
        ),
        (["photo.png"], "--from or --image"),
        (["a", "-n", "blue", "-g", "1"], "--negative-prompt has no effect"),
        (["cat", "dog"], None),
        (["a cat. a dog.", "3.5 apples"], None),
    ],
)
def test_likely_slips(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str | None
) -> None:
    assert generate.main([*argv, "--model", str(folder), "--steps", "1"]) == 0
    warned = [row for row in capsys.readouterr().err.splitlines() if "warning" in row]
    assert len(warned) == (message is not None)
    assert message is None or message in warned[0]


def test_one_bad_file_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, picture: Image.Image
) -> None:
    """What can be read is described; what cannot is named, and the command fails."""
    (tmp_path / "a.safetensors").write_bytes(b"")
    picture.save(tmp_path / "b.png")
    assert info.main([str(tmp_path / "a.safetensors"), str(tmp_path / "b.png")]) == 1
    said = capsys.readouterr()
    assert "b.png, PNG" in said.out
    assert "a.safetensors is truncated" in said.err and "1 of 2 could not be read" in said.err
