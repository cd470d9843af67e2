"""IP-Adapters as a user types them: options, files of prompts, records, replay, errors."""

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
from ldm.control.image_sources import save_image_embeds
from ldm.images import read_parameters, read_settings
from ldm.images.generation_info import from_text
from ldm.images.metadata import parse_parameters
from ldm.pipeline import Pipeline
from tests.helpers.ip_adapters import adapter_tensors, image_encoder, save_adapter

Run = Callable[..., tuple[int, str]]
ONE = ("--ip-adapter", "a/base.bin", "--ip-adapter-image", "a.png")
TWO = (*ONE, "--ip-adapter", "a/plus.safetensors", "--ip-adapter-image", "b.png")


@pytest.fixture(scope="module")
def saved(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, one with IP-Adapters for it and their encoder, two pictures."""
    ours, theirs = models("sd")
    folder = tmp_path_factory.mktemp("ip_adapter")
    theirs.save_pretrained(folder / "model")
    image_encoder(folder / "a" / "image_encoder")
    save_adapter(folder / "a" / "base.bin", adapter_tensors(ours.unet.config, "base"))
    save_adapter(folder / "a" / "plus.safetensors", adapter_tensors(ours.unet.config, "plus"))
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).save(folder / name)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "mask.png")
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


def test_drawn_recorded_and_drawn_again(run: Run, capsys: pytest.CaptureFixture) -> None:
    options = ("--ip-adapter-scale", "0.5,0.7")
    masks = ("--ip-adapter-mask", "mask.png", "--ip-adapter-mask", "mask.png")
    assert run("a cat", *TWO, *options, *masks, "-o", "one.png")[0] == 0
    settings = read_settings("one.png")
    assert settings["ip_adapters"] == ["base", "plus"]
    assert settings["arguments"]["ip_adapter_scale"] == "0.5,0.7"
    assert settings["images"]["ip_adapter_image"].count(",") == 1
    assert settings["images"]["ip_adapter_mask"].count(",") == 1
    text = parse_parameters(read_parameters("one.png"))
    assert "Module: ip-adapter-auto, Model: plus, Weight: 0.7, " in text["ControlNet 1"]
    read = from_text(read_parameters("one.png"))
    assert (read.ip_adapters, read.controlnets) == (("base", "plus"), ())
    assert read.arguments["ip_adapter_scale"] == [0.5, 0.7]
    assert main(["--from", "one.png", *TWO, *masks, "-m", "model", "-o", "again.png"]) == 0
    assert (pixels("one.png") == pixels("again.png")).all()
    given = (*TWO[:1], "a/base.bin:0.5", *TWO[2:5], "a/plus.safetensors:0.7", *TWO[6:])
    assert run("a cat", *given, *masks, "-o", "colon.png")[0] == 0
    assert (pixels("one.png") == pixels("colon.png")).all()
    assert run("a cat", *TWO, *options, "-o", "everywhere.png")[0] == 0
    assert not (pixels("one.png") == pixels("everywhere.png")).all()
    capsys.readouterr()
    assert info(["one.png"]) == 0
    out = capsys.readouterr().out
    assert "--ip-adapter base --ip-adapter plus --ip-adapter-image FILE --ip-adapter-mask" in out
    assert info(["a/plus.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "plus, 6 tokens for a picture" in out
    assert "an image encoder's states of width 24" in out
    assert main(["--from", "one.png", "-m", "model"]) == USAGE
    assert "was drawn with the IP-Adapter 'base' and 'plus'; say with" in capsys.readouterr().err


def test_several_pictures_and_embeddings(run: Run) -> None:
    both = (*ONE, "--ip-adapter-image", "b.png")
    assert run("a cat", *both, "-o", "both.png")[0] == 0
    assert run("a cat", *ONE, "-o", "one.png")[0] == 0
    assert not (pixels("one.png") == pixels("both.png")).all()
    pipe = Pipeline.from_pretrained("model", device="cpu")
    pipe.load_ip_adapter("a/base.bin")
    save_image_embeds("both.safetensors", pipe.encode_ip_adapter_image(["a.png", "b.png"]))
    assert run("a cat", *ONE[:3], "both.safetensors", "-o", "same.png")[0] == 0
    assert np.abs(pixels("same.png") - pixels("both.png")).max() <= 1
    digest = read_settings("same.png")["images"]["ip_adapter_image"]
    again = ("--from", "same.png", *ONE[:3], "both.safetensors", "-m", "model", "-o", "x.png")
    assert len(digest) == 10
    assert main(list(again)) == 0
    assert (pixels("same.png") == pixels("x.png")).all()
    given = {"seed": 1, "num_inference_steps": 2, "ip_adapter_image": ["a.png", "b.png"]}
    pipe.optimize()
    picture = pipe("a cat", **given).images[0]
    assert (np.asarray(picture) == pixels("both.png")).all()
    picture.save("python.png")
    assert main(["--from", "python.png", *both, "-m", "model", "-o", "y.png"]) == 0
    assert (pixels("y.png") == pixels("both.png")).all()


def test_files_of_prompts(run: Run) -> None:
    rows = [
        {"prompt": "a cat", "ip_adapter_image": "b.png", "output": "b.png.png"},
        {"prompt": "a cat", "seed": 1, "ip_adapter_scale": 0.2, "output": "weak.png"},
        {"prompt": "a cat", "seed": 1, "ip_adapter_image": ["a.png", "b.png"], "output": "two.png"},
        {"prompt": "a cat", "ip_adapter_image": 3},
        {"prompt": "a cat", "ip_adapter_image": "nowhere.png"},
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, err = run("--prompts", "rows.jsonl", *ONE, "-o", "out/")
    assert code == FAILED
    assert "rows.jsonl:4: ip_adapter_image is 3; expected a text" in err
    assert "rows.jsonl:5: nowhere.png does not exist" in err
    assert run("a cat", *ONE, "--ip-adapter-scale", "0.2", "-o", "same.png")[0] == 0
    assert (pixels("same.png") == pixels("weak.png")).all()
    assert run("a cat", *ONE, "--ip-adapter-image", "b.png", "-o", "both.png")[0] == 0
    assert (pixels("both.png") == pixels("two.png")).all()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (ONE[:2], USAGE, "--ip-adapter reads a picture; give --ip-adapter-image FILE, too"),
        (ONE[2:], USAGE, "ip_adapter_image is of an IP-Adapter, and none is loaded"),
        (("--ip-adapter-scale", "1"), USAGE, "--ip-adapter-scale is of an --ip-adapter-image"),
        (("--image-encoder", "a"), USAGE, "--image-encoder is of an --ip-adapter; give that, too"),
        ((*TWO, *ONE[2:]), USAGE, "there are 2 --ip-adapter and 3 --ip-adapter-image; give one"),
        ((*ONE, *["--ip-adapter-mask", "mask.png"] * 2), USAGE, "there are 2 --ip-adapter-mask"),
        ((*ONE, "--ip-adapter-blocks", "style"), USAGE, "names blocks of Stable Diffusion XL"),
        ((*ONE, "--ip-adapter-blocks", "x"), USAGE, "ip_adapter_blocks is 'x'; expected 'all'"),
        ((*ONE[:1], "a/base.bin:x", *ONE[2:]), USAGE, "--ip-adapter: the scale of a/base.bin is"),
        (
            (*ONE[:1], "a/base.bin:1", *ONE[2:], "--ip-adapter-scale", "1"), USAGE,
            "--ip-adapter PATH:SCALE and --ip-adapter-scale say the same",
        ),
        ((*ONE[:1], "nowhere", *ONE[2:]), FAILED, "nowhere does not exist; give an IP-Adapter's"),
        ((*ONE[:3], "nowhere.png"), FAILED, "nowhere.png does not exist"),
        ((*ONE[:1], "a", *ONE[2:]), FAILED, "weight_name: base.bin, plus.safetensors"),
        ((*ONE, "--image-encoder", "model/unet"), FAILED, "model/unet"),
        (("--model", "a/plus.safetensors"), FAILED, "give it beside one: --ip-adapter FILE"),
        (("--model", "a/base.bin"), FAILED, "--ip-adapter FILE"),
        (("--lora", "a/plus.safetensors"), FAILED, "is an IP-Adapter, not a LoRA; give it"),
        (("--lora", "a/base.bin"), FAILED, "is an IP-Adapter; give it as --ip-adapter FILE"),
        (
            ("--controlnet", "a/base.bin", "--control-image", "a.png"), FAILED,
            "is an IP-Adapter; give it as --ip-adapter FILE",
        ),
        (
            ("--controlnet", "a/plus.safetensors", "--control-image", "a.png"), FAILED,
            "is an IP-Adapter, not a ControlNet of these models; give it as --ip-adapter FILE",
        ),
    ],
)  # fmt: skip
def test_input_that_is_wrong(run: Run, argv: tuple[str, ...], code: int, message: str) -> None:
    found, err = run("a cat", *argv, "-o", "x.png")
    assert (found, message in err) == (code, True), err
    assert not Path("x.png").exists()
