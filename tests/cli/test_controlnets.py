"""ControlNets as a user types them: options, files of prompts, records, replay, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.cli.common import FAILED, USAGE
from ldm.cli.generate import main
from ldm.cli.info import main as info
from ldm.images import read_parameters, read_settings
from ldm.images.metadata import parse_parameters
from tests.helpers.controlnets import controlnet_for

Run = Callable[..., tuple[int, str]]
ONE = ("--controlnet", "net0", "--control-image", "a.png")
TWO = (*ONE, "--controlnet", "net1", "--control-image", "b.png")


@pytest.fixture(scope="module")
def saved(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, two ControlNets for it, and two pictures."""
    _, theirs = models("sd")
    folder = tmp_path_factory.mktemp("control")
    theirs.save_pretrained(folder / "model")
    for i in range(2):
        controlnet_for(theirs, i).save_pretrained(folder / f"net{i}")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def run(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Run:
    """Run the command in that folder → (exit code, stderr)."""
    monkeypatch.chdir(tmp_path)
    for path in saved.iterdir():
        (tmp_path / path.name).symlink_to(path)

    def call(*argv: str) -> tuple[int, str]:
        try:
            code = main(["--model", "model", "--steps", "2", "--seed", "1", *argv])
        except SystemExit as wrong_usage:
            code = int(str(wrong_usage.code))
        return code, capsys.readouterr().err

    return call


def pixels(path: str) -> Any:
    return np.asarray(Image.open(path)).astype(int)


def test_steered_recorded_and_drawn_again(run: Run, capsys: pytest.CaptureFixture) -> None:
    options = ("--control-scale", "0.5,1", "--control-end", "0.8", "--guess-mode")
    assert run("a cat", *TWO, *options, "-o", "one.png")[0] == 0
    settings = read_settings("one.png")
    assert settings["controlnets"] == ["net0", "net1"]
    assert settings["arguments"]["controlnet_conditioning_scale"] == "0.5,1.0"
    assert settings["arguments"]["control_guidance_end"] == 0.8
    assert settings["images"]["control_image"].count(",") == 1
    text = parse_parameters(read_parameters("one.png"))
    assert "Model: net1, Weight: 1, " in text["ControlNet 1"]
    assert "Guidance End: 0.8, Control Mode: ControlNet is more important" in text["ControlNet 0"]
    assert main(["--from", "one.png", *TWO, "-m", "model", "-o", "again.png"]) == 0
    assert (pixels("one.png") == pixels("again.png")).all()
    pictures = ("--control-image", "a.png", "--control-image", "b.png")
    given = ("--controlnet", "net0:0.5", "--controlnet", "net1", *pictures)
    assert run("a cat", *given, "--control-end", "0.8", "--guess-mode", "-o", "colon.png")[0] == 0
    assert (pixels("one.png") == pixels("colon.png")).all()
    off = ("-m", "model", *given[:1], "net0:0", *given[2:], "-o", "off.png")
    assert main(["--from", "one.png", *off]) == 0
    assert not (pixels("one.png") == pixels("off.png")).all()
    capsys.readouterr()
    assert info(["one.png"]) == 0
    out = capsys.readouterr().out
    assert "--controlnet net0 --control-image FILE --controlnet net1 --control-image FILE" in out
    assert info(["net0"]) == 0
    assert "kind     ControlNet" in capsys.readouterr().out


def test_from_needs_the_same_ones(run: Run, capsys: pytest.CaptureFixture) -> None:
    assert run("a cat", *TWO, "-o", "one.png")[0] == 0
    for given, message in (
        ((), "was drawn with the ControlNet 'net0' and 'net1'; say with --controlnet where it is"),
        (TWO[:2] + TWO[4:6], "from a picture that is not in it; give that with --control-image"),
    ):
        assert main(["--from", "one.png", "-m", "model", *given]) == USAGE
        assert message in capsys.readouterr().err
    swapped = (*TWO[:3], "b.png", *TWO[4:7], "a.png")
    assert main(["--from", "one.png", "-m", "model", *swapped, "-o", "x.png"]) == 0
    assert "was drawn from another --control-image than" in capsys.readouterr().err


def test_files_of_prompts(run: Run) -> None:
    rows = [
        {"prompt": "a cat", "control_image": "b.png", "control_start": 0.5, "output": "b-late.png"},
        {"prompt": "a cat", "seed": 1, "output": "plain.png", "controlnet_conditioning_scale": 0.2},
        {"prompt": "a cat", "control_image": ["a.png", "b.png"]},
        {"prompt": "a cat", "control_image": 3},
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, err = run("--prompts", "rows.jsonl", *ONE, "-o", "out/")
    assert code == FAILED
    assert "rows.jsonl:3: there is 1 --controlnet and 2 --control-image; give one picture" in err
    assert "rows.jsonl:4: control_image is 3; expected a text" in err
    assert run("a cat", *ONE, "--control-scale", "0.2", "-o", "same.png")[0] == 0
    assert (pixels("same.png") == pixels("plain.png")).all()


def test_the_size_follows_the_picture(run: Run) -> None:
    Image.new("RGB", (640, 320), "navy").save("large.png")
    assert (
        run("a cat", "--controlnet", "net0", "--control-image", "large.png", "-o", "x.png")[0] == 0
    )
    assert Image.open("x.png").size == (88, 40)  # about the 64x64 pixels of the model
    many = ("--hires-scale", "2", "-o", "y.png")
    assert run("a cat", *ONE, *many)[0] == 0
    assert Image.open("y.png").size == (128, 80)
    run("a cat", *ONE, "--x", "control_scale=0,0.5,1", "-o", "plot.png")
    assert Image.open("plot.png").width > 3 * 64


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (ONE[:2], USAGE, "there is 1 --controlnet and 0 --control-image; give one picture"),
        (ONE[2:], USAGE, "--control-image is of a --controlnet; give that, too"),
        ((*ONE, "--control-image", "b.png"), USAGE, "1 --controlnet and 2 --control-image"),
        (("--guess-mode",), USAGE, "--guess-mode is of a --controlnet; give that, too"),
        (("--control-end", "0.5"), USAGE, "--control-guidance-end is of a --controlnet"),
        ((*ONE[:1], "net0:x", *ONE[2:]), USAGE, "the scale of net0 is 'x'; it must be a number"),
        ((*ONE[:1], "net0:2", *ONE[2:], "--control-scale", "1"), USAGE, "say the same; give one"),
        ((*ONE[:1], "nowhere:2", *ONE[2:]), FAILED, "nowhere does not exist; give a ControlNet's"),
        ((*ONE[:3], "nowhere.png"), FAILED, "nowhere.png does not exist"),
        ((*ONE, "--control-scale", "much"), USAGE, "it is 'much'; give a number, or one for each"),
        ((*ONE, "--control-scale", "1,1"), USAGE, "2 values for 1 ControlNet; give one, or one"),
        ((*ONE, "--control-start", "1"), USAGE, "the start must be less"),
        (
            (*ONE[:1], "model", *ONE[2:]),
            FAILED,
            "model is a model without a ControlNet",
        ),
        (("--vae", "net0"), FAILED, "net0"),
    ],
)
def test_input_that_is_wrong(run: Run, argv: tuple[str, ...], code: int, message: str) -> None:
    found, err = run("a cat", *argv, "-o", "x.png")
    assert (found, message in err) == (code, True), err
    assert not Path("x.png").exists()
