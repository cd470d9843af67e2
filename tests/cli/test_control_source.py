"""``--control NAME:FILE``, ``--save-control``, and the ControlNet in a model's own folder."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm.cli.common import FAILED, USAGE
from ldm.cli.generate import main
from ldm.cli.info import main as info
from ldm.control.preprocessors import canny, tile
from ldm.control.source import read_control
from ldm.errors import ArgumentError
from ldm.images import read_parameters, read_settings
from ldm.images.files import stretch
from ldm.images.generation_info import OWN_CONTROLNET, from_text
from ldm.images.metadata import parse_parameters
from ldm.pipeline import Pipeline
from tests.helpers.controlnets import controlnet_for

Run = Callable[..., tuple[int, str]]
NET = ("--controlnet", "net")
CANNY = ("--control", "canny,low=40:a.png")


@pytest.fixture(scope="module")
def saved(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model without and one with a ControlNet, that ControlNet, a picture."""
    _, theirs = models("sd")
    folder = tmp_path_factory.mktemp("control")
    for name in ("model", "steered"):
        theirs.save_pretrained(folder / name)
    for path in (folder / "net", folder / "steered" / "controlnet"):
        controlnet_for(theirs).save_pretrained(path)
    picture = Image.new("RGB", (128, 80), "white")
    ImageDraw.Draw(picture).ellipse((30, 20, 100, 60), fill="navy", outline="red")
    picture.save(folder / "a.png")
    return folder


@pytest.fixture
def run(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Run:
    """Run the command in that folder → (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    for path in saved.iterdir():
        (tmp_path / path.name).symlink_to(path)

    def call(*argv: str, model: str = "model") -> tuple[int, str]:
        size = () if "--from" in argv else ("--steps", "2", "--seed", "1", "-W", "64", "-H", "40")
        try:
            code = main(["--model", model, *size, *argv])
        except SystemExit as wrong_usage:
            code = int(str(wrong_usage.code))
        return code, capsys.readouterr().err

    return call


def pixels(path: str) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def test_preprocessed_at_the_size_that_is_drawn(run: Run) -> None:
    assert run("a", *NET, *CANNY, "--save-control", "seen.png", "-o", "one.png")[0] == 0
    small = canny(stretch(Image.open("a.png"), 40, 64), low=40)
    assert (pixels("seen.png") == np.asarray(small)).all()
    assert not (np.asarray(stretch(canny(Image.open("a.png"), low=40), 40, 64)) == small).all()
    assert run("a", *NET, "--control-image", "seen.png", "-o", "same.png")[0] == 0
    assert (pixels("one.png") == pixels("same.png")).all()
    large = ("--hires-scale", "2", "--save-control", "large.png")
    assert run("a", *NET, *CANNY, *large, "-o", "two.png")[0] == 0
    assert (pixels("large.png") == np.asarray(canny(Image.open("a.png"), low=40))).all()


def test_mixed_in_order(run: Run) -> None:
    two = (*NET, *NET, "--control-image", "a.png", "--control", "tile:a.png")
    assert run("a", *two, "--save-control", "seen.png", "-o", "x.png")[0] == 0
    first = stretch(Image.open("a.png").convert("RGB"), 40, 64)
    assert (pixels("seen-1.png") == np.asarray(first)).all()
    assert (pixels("seen-2.png") == np.asarray(tile(first))).all()
    text = parse_parameters(read_parameters("x.png"))
    assert text["ControlNet 0"].startswith("Module: None, ")
    assert "Module: tile_resample" in text["ControlNet 1"]


def test_recorded_and_drawn_again(run: Run, capsys: pytest.CaptureFixture) -> None:
    assert run("a", *NET, *CANNY, "-o", "one.png")[0] == 0
    assert read_settings("one.png")["preprocessors"] == ["canny,low=40"]
    unit = parse_parameters(read_parameters("one.png"))["ControlNet 0"]
    assert unit.startswith("Module: canny, Model: net, Weight: 1")
    assert "Threshold A: 40, Threshold B: 200, Pixel Perfect: True" in unit
    assert from_text(read_parameters("one.png")).preprocessors == ("canny,low=40",)
    code, err = run("--from", "one.png", *NET, *CANNY, "-o", "again.png")
    assert (code, "warning" in err) == (0, False), err
    assert (pixels("one.png") == pixels("again.png")).all()
    code, err = run("--from", "one.png", *NET, "--control", "canny:a.png", "-o", "other.png")
    assert (code, "give --control canny,low=40:FILE" in err) == (0, True), err
    code, err = run("--from", "one.png", *NET)
    assert (code, "give that with --control canny,low=40:FILE" in err) == (USAGE, True), err
    assert info(["one.png"]) == 0
    assert "--controlnet net --control canny,low=40:FILE" in capsys.readouterr().out


def test_the_same_in_python(run: Run) -> None:
    assert run("a", *NET, *CANNY, "-o", "one.png")[0] == 0
    pipe = Pipeline.from_pretrained("model", controlnet="net", device="cpu").optimize()
    given = read_control("canny,low=40:a.png")
    size = {"width": 64, "height": 40, "num_inference_steps": 2, "seed": 1}
    picture = pipe("a", control_image=given, **size).images[0]
    assert (np.asarray(picture).astype(int) == pixels("one.png")).all()
    picture.save("python.png")
    assert read_settings("python.png")["preprocessors"] == ["canny,low=40"]
    assert read_settings("python.png")["images"] == read_settings("one.png")["images"]
    layer = Image.open("a.png").convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    layer.save("layer.png")
    hole = read_control("inpaint:layer.png")
    assert hole.hint((40, 64)).min() == -1  # what an inpainting ControlNet fills in
    assert np.asarray(hole.picture((40, 64))).min() == 0
    with pytest.raises(ArgumentError, match="inpaint needs to know what to draw anew"):
        pipe("a", control_image=read_control("inpaint:a.png"), **size)


def test_the_models_own(run: Run, capsys: pytest.CaptureFixture) -> None:
    assert run("a", *NET, *CANNY, "-o", "want.png")[0] == 0
    assert run("a", *CANNY, "-o", "own.png", model="steered")[0] == 0
    assert (pixels("own.png") == pixels("want.png")).all()
    assert read_settings("own.png")["controlnets"] == [OWN_CONTROLNET]
    assert run("--from", "own.png", *CANNY, "-o", "again.png", model="steered")[0] == 0
    assert (pixels("again.png") == pixels("own.png")).all()
    assert info(["own.png"]) == 0
    assert " --control canny,low=40:FILE " in capsys.readouterr().out
    code, err = run("a", *CANNY, *CANNY, model="steered")
    assert (code, "there is 1 --controlnet (the model's own) and 2" in err) == (USAGE, True), err
    code, err = run("a", *CANNY)
    assert (code, "--control is of a --controlnet; give that, too" in err) == (USAGE, True), err


def test_the_models_own_is_loaded_when_it_is_needed(saved: Path) -> None:
    plain = Pipeline.from_pretrained(saved / "model", device="cpu")
    pipe = Pipeline.from_pretrained(saved / "steered", device="cpu")
    arguments = {"width": 64, "height": 40, "num_inference_steps": 2, "seed": 1}
    want = plain("a", **arguments, output_type="pt").images
    assert (pipe("a", **arguments, output_type="pt").images == want).all()
    assert not pipe.controlnets
    steered = pipe("a", control_image=saved / "a.png", **arguments, output_type="pt").images
    assert list(pipe.controlnets) == [OWN_CONTROLNET]
    again = pipe("a", **arguments)  # not steered any more, and nothing is missing
    assert (pipe("a", **arguments, output_type="pt").images == want).all()
    assert "controlnets" not in again.images[0].info["ldm"]
    plain.load_controlnet(saved / "net")
    given = {"control_image": saved / "a.png", "output_type": "pt"}
    assert (plain("a", **arguments, **given).images == steered).all()
    pipe.load_controlnet(saved / "net")  # in its place
    assert (pipe("a", **arguments, **given).images == steered).all()
    with pytest.raises(ArgumentError, match="guess_mode is of a ControlNet"):
        Pipeline.from_pretrained(saved / "steered", device="cpu").stream("a", guess_mode=True)


def test_files_of_prompts(run: Run) -> None:
    rows = [
        {"prompt": "a", "control": "canny,low=40:a.png", "output": "canny.png", "seed": 1},
        {"prompt": "a", "control_image": "a.png", "output": "plain.png", "seed": 1},
        {"prompt": "a", "control": "cany:a.png"},
        {"prompt": "a", "control": 3},
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, err = run(*NET, "--prompts", "rows.jsonl", "--save-control", "seen.png")
    assert code == FAILED
    assert "rows.jsonl:3: unknown preprocessor 'cany'; did you mean 'canny'?" in err
    assert "rows.jsonl:4: control is 3; expected a text" in err
    assert Path("seen-1.png").exists() and Path("seen-2.png").exists()
    assert run("a", *NET, *CANNY, "-o", "one.png")[0] == 0
    assert (pixels("one.png") == pixels("canny.png")).all()


def test_where_it_is_saved(run: Run, capsys: pytest.CaptureFixture) -> None:
    Path("mine.png").write_bytes(b"a user's file")
    code, err = run("a", *NET, *CANNY, "--save-control", "mine.png", "-o", "x.png")
    assert (code, "mine.png exists; choose another --save-control" in err) == (FAILED, True), err
    assert Path("mine.png").read_bytes() == b"a user's file"
    assert not Path("x.png").exists()
    assert run("a", *NET, *CANNY, "--save-control", "mine.png", "-o", "x.png", "--force")[0] == 0
    assert Image.open("mine.png").size == (64, 40)
    folder = ("--save-control", "seen/", "--num-images", "2", "-o", "out/")
    assert run("a", *NET, *CANNY, *folder)[0] == 0
    assert [path.name for path in Path("seen").iterdir()] == ["a-1-control.png"]
    capsys.readouterr()
    many = ["--json", "--save-control", "{prompt}-{seed}.png", "--seed", "9", "-o", "y.png"]
    assert main(["a", "-m", "model", "--steps", "1", *NET, *CANNY, *many]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["files"] == {"control": "a-9.png"} and Path("a-9.png").exists()


def test_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Input(io.BytesIO):
        buffer = property(lambda self: self)

    monkeypatch.setattr(sys, "stdin", Input(Path("a.png").read_bytes()))
    assert run("a", *NET, "--control", "canny,low=40:-", "-o", "piped.png")[0] == 0
    assert run("a", *NET, *CANNY, "-o", "one.png")[0] == 0
    assert (pixels("one.png") == pixels("piped.png")).all()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--control", "cany:a.png"), USAGE, "unknown preprocessor 'cany'; did you mean 'canny'?"),
        (("--control", "a.png"), USAGE, "names no preprocessor; write NAME:FILE, such as canny:a"),
        (("--control", "canny:nowhere.png"), FAILED, "nowhere.png does not exist"),
        (("--control", ""), USAGE, "it is empty"),
        (("--control", "canny,low=300:a.png"), USAGE, "low must not be above high"),
        (("--control", "depth:a.png"), USAGE, "only a network can make it; give the map as the"),
        (("--control", "inpaint:a.png"), USAGE, "give a mask, or an image with transparent parts"),
        (("--control", "canny:https://x/y.png"), USAGE, "is an address"),
        ((*CANNY, *CANNY), USAGE, "there is 1 --controlnet and 2 --control-image"),
        (("--control-scale", "0", "--save-control", "x.png"), USAGE, "give one picture for each"),
        ((*CANNY, "--save-control", "-"), USAGE, "--save-control is -, but stdout is for pictures"),
        ((*CANNY, "--save-control", "x.png"), USAGE, "as another file is called; change it"),
        ((*CANNY, "--save-control", "x.txt"), FAILED, "does not end in a known format"),
        ((*CANNY, "--save-control", "{what}.png"), USAGE, "--save-control '{what}.png' has an"),
        ((*CANNY, "--control", "canny:-", *NET, "-i", "-"), USAGE, "standard input can be read"),
    ],
)  # fmt: skip
def test_input_that_is_wrong(run: Run, argv: tuple[str, ...], code: int, message: str) -> None:
    found, err = run("a", *NET, *argv, "-o", "x.png")
    assert (found, message in err) == (code, True), err
    assert not Path("x.png").exists()
    code, err = run("a", "--save-control", "seen.png")
    assert (code, "saves what a ControlNet sees; give --control" in err) == (USAGE, True), err
