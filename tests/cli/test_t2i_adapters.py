"""T2I-Adapters as a user types them: options, files of prompts, records, replay, errors."""

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
from tests.helpers.t2i_adapters import adapter, base_of, noisy

Run = Callable[..., tuple[int, str]]
ONE = ("--t2i-adapter", "full", "--adapter-image", "a.png")
TWO = (*ONE, "--t2i-adapter", "light", "--adapter-image", "b.png")
CONTROL = ("--controlnet", "net", "--control-image", "b.png")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, two T2I-Adapters and a ControlNet for it, and two pictures."""
    theirs = base_of("sd")
    folder = tmp_path_factory.mktemp("adapters")
    theirs.save_pretrained(folder / "model")
    for seed, kind in enumerate(("full", "light")):
        adapter(kind, seed).save_pretrained(folder / kind)
    controlnet_for(theirs).save_pretrained(folder / "net")
    for seed, name in enumerate(("a.png", "b.png")):
        noisy(seed, (64, 40)).save(folder / name)
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
    options = ("--adapter-scale", "0.5,1", "--adapter-factor", "0.8", *CONTROL)
    assert run("a cat", *TWO, *options, "-o", "one.png")[0] == 0
    settings = read_settings("one.png")
    assert (settings["t2i_adapters"], settings["controlnets"]) == (["full", "light"], ["net"])
    assert settings["arguments"]["adapter_conditioning_scale"] == "0.5,1.0"
    assert settings["arguments"]["adapter_conditioning_factor"] == 0.8
    assert settings["images"]["adapter_image"].count(",") == 1
    text = parse_parameters(read_parameters("one.png"))
    assert "Model: t2iadapter_full, Weight: 0.5, " in text["ControlNet 1"]
    assert "Guidance End: 0.8, Control Mode: Balanced" in text["ControlNet 2"]
    again = ("--from", "one.png", *TWO, *CONTROL, "-m", "model")
    assert main([*again, "-o", "again.png"]) == 0
    assert (pixels("one.png") == pixels("again.png")).all()
    pictures = ("--adapter-image", "a.png", "--adapter-image", "b.png", *CONTROL)
    given = ("--t2i-adapter", "full:0.5", "--t2i-adapter", "light", *pictures)
    assert run("a cat", *given, "--adapter-factor", "0.8", "-o", "colon.png")[0] == 0
    assert (pixels("one.png") == pixels("colon.png")).all()
    off = ("-m", "model", "--t2i-adapter", "full:0", *given[2:], "-o", "off.png")
    assert main(["--from", "one.png", *off]) == 0
    assert not (pixels("one.png") == pixels("off.png")).all()
    capsys.readouterr()
    assert info(["one.png"]) == 0
    out = capsys.readouterr().out
    assert "--controlnet net --control-image FILE --t2i-adapter full --adapter-image FILE" in out
    assert "T2I-Adapters" in out
    for path, use in (("full", "FOLDER"), ("full/diffusion_pytorch_model.safetensors", "FILE")):
        assert info([path]) == 0
        out = capsys.readouterr().out
        assert "T2I-Adapter" in out and "one with features of 32 channels at 1/8, 64" in out
        assert f"--t2i-adapter {use} --adapter-image PICTURE" in out
        assert "pictures of 3 channels" in out


def test_from_needs_the_same_ones(run: Run, capsys: pytest.CaptureFixture) -> None:
    assert run("a cat", *TWO, "-o", "one.png")[0] == 0
    for given, message in (
        ((), "was drawn with the T2I-Adapter 'full' and 'light'; say with --t2i-adapter where it"),
        (TWO[:2] + TWO[4:6], "from a picture that is not in it; give that with --adapter-image"),
    ):
        assert main(["--from", "one.png", "-m", "model", *given]) == USAGE
        assert message in capsys.readouterr().err
    swapped = (*TWO[:3], "b.png", *TWO[4:7], "a.png")
    assert main(["--from", "one.png", "-m", "model", *swapped, "-o", "x.png"]) == 0
    assert "was drawn from another --adapter-image than" in capsys.readouterr().err


def test_files_of_prompts(run: Run) -> None:
    rows = [
        {
            "prompt": "a cat",
            "adapter_image": "b.png",
            "adapter_factor": 0.5,
            "output": "b-2.png",
        },
        {"prompt": "a cat", "seed": 1, "output": "plain.png", "adapter_conditioning_scale": 0.2},
        {"prompt": "a cat", "adapter_image": ["a.png", "b.png"]},
        {"prompt": "a cat", "adapter_image": 3},
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, err = run("--prompts", "rows.jsonl", *ONE, "-o", "out/")
    assert code == FAILED
    assert "rows.jsonl:3: there is 1 --t2i-adapter and 2 --adapter-image; give one picture" in err
    assert "rows.jsonl:4: adapter_image is 3; expected a text" in err
    assert run("a cat", *ONE, "--adapter-scale", "0.2", "-o", "same.png")[0] == 0
    assert (pixels("same.png") == pixels("plain.png")).all()


def test_the_size_follows_the_picture(run: Run) -> None:
    Image.new("RGB", (640, 320), "navy").save("large.png")
    given = ("--t2i-adapter", "full", "--adapter-image", "large.png")
    assert run("a cat", *given, "-o", "x.png")[0] == 0
    assert Image.open("x.png").size == (88, 40)  # about the 64x64 pixels of the model
    assert run("a cat", *ONE, "--hires-scale", "2", "-o", "y.png")[0] == 0
    assert Image.open("y.png").size == (128, 80)
    assert run("a cat", *ONE, "--x", "adapter_factor=0,0.5,1", "-o", "plot.png")[0] == 0
    assert Image.open("plot.png").width > 3 * 64


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (ONE[:2], USAGE, "there is 1 --t2i-adapter and 0 --adapter-image; give one picture"),
        (ONE[2:], USAGE, "--adapter-image is of a --t2i-adapter; give that, too"),
        ((*ONE, "--adapter-image", "b.png"), USAGE, "1 --t2i-adapter and 2 --adapter-image"),
        (("--adapter-factor", "0.5"), USAGE, "--adapter-conditioning-factor is of a --t2i-adapter"),
        ((*ONE[:1], "full:x", *ONE[2:]), USAGE, "--t2i-adapter: the scale of full is 'x'; it must"),
        ((*ONE[:1], "full:2", *ONE[2:], "--adapter-scale", "1"), USAGE, "say the same; give one"),
        ((*ONE[:1], "nowhere:2", *ONE[2:]), FAILED, "nowhere does not exist; give a T2I-Adapter's"),
        ((*ONE[:3], "nowhere.png"), FAILED, "nowhere.png does not exist"),
        ((*ONE, "--adapter-scale", "much"), USAGE, "it is 'much'; give a number, or one for each"),
        ((*ONE, "--adapter-scale", "1,1"), USAGE, "2 values for 1 T2I-Adapter; give one, or one"),
        ((*ONE, "--adapter-factor", "2"), USAGE, "is 2.0; it must be in [0, 1]"),
        ((*ONE[:1], "net", *ONE[2:]), FAILED, "net is a ControlNet, not a T2I-Adapter; give it as"),
        (("--controlnet", "full", *CONTROL[2:]), FAILED, "full is a T2I-Adapter, not a ControlNet"),
        (("--model", "full"), FAILED, "full is a T2I-Adapter, not a model; give it beside one"),
        ((*ONE[:1], "model", *ONE[2:]), FAILED, "model is a model without a T2I-Adapter"),
    ],
)
def test_input_that_is_wrong(run: Run, argv: tuple[str, ...], code: int, message: str) -> None:
    found, err = run("a cat", *argv, "-o", "x.png")
    assert (found, message in err) == (code, True), err
    assert not Path("x.png").exists()
