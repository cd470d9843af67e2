"""``ldm-info``, ``ldm-convert`` and the model options of ``ldm-generate``, as a user types them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.adapters.lora_scale import TagScale
from ldm.checkpoints.describe import describe_header
from ldm.checkpoints.header import Header, TensorInfo
from ldm.cli import convert, generate, info
from ldm.cli.loras import find_lora, lora_option, lora_tag
from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline
from ldm.text.lora_tags import split_tags
from tests.helpers.files import names
from tests.helpers.original_layouts import layout

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA for the model of ``folder``."""
    rng = torch.Generator().manual_seed(0)
    tensors = {
        f"{LAYER}.lora_down.weight": torch.randn(2, 64, generator=rng),
        f"{LAYER}.lora_up.weight": torch.randn(64, 2, generator=rng),
    }
    (tmp_path / "loras" / "deep").mkdir(parents=True)
    path = tmp_path / "loras" / "deep" / "style.safetensors"
    save_file(tensors, path, {"ss_tag_frequency": '{"x": {"cat": 3, "dog": 9}}'})
    return path


def dtypes(folder: Path) -> set[torch.dtype]:
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return {value.dtype for value in weights.values()}


def rows(name: str, **metadata: str) -> dict[str, str]:
    tensors = {key: TensorInfo("F16", shape) for key, shape in layout(name).items()}
    return dict(describe_header(Header(tensors, metadata), Path("x.safetensors")))


def test_info_of_a_model() -> None:
    found = rows("sdxl", **{"modelspec.title": "My model", "modelspec.prediction_type": "v"})
    assert found["kind"] == "Stable Diffusion XL"
    assert found["unet"] == "2567.5M parameters, float16"
    assert found["text_encoder_2"].startswith("694.7M")
    assert found["prediction type"] == "v_prediction"
    assert found["title"] == "My model"
    assert rows("sd2")["prediction type"] == "v_prediction (a guess: the file does not say)"


def test_info_of_a_lora(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([str(lora), "--hash"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"kind +LoRA", told)
    assert re.search(r"layers +1 of the U-Net", told)
    assert re.search(r"rank +2", told)
    assert re.search(r"tags +dog, cat", told)
    assert re.search(r"sha256 +[0-9a-f]{64}", told)


def test_info_of_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([str(folder)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"kind +StableDiffusionPipeline", told)
    assert re.search(r"unet +\d.*M parameters, float32", told)


def test_info_needs_no_torch(lora: Path) -> None:
    code = "import sys; from ldm.cli.info import main; main(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(lora)], check=True, capture_output=True)


def test_info_of_pickles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {key: torch.Size(shape) for key, shape in layout("sd1").items()}
    storage = torch.zeros(max(shape.numel() for shape in shapes.values()), dtype=torch.float16)
    small = {key: storage[: shape.numel()].view(shape) for key, shape in shapes.items()}
    torch.save({"state_dict": small | {"model_ema.decay": torch.ones(())}}, tmp_path / "x.ckpt")
    torch.save({"string_to_param": {"*": torch.zeros(3, 768)}, "name": "cat"}, tmp_path / "y.pt")
    assert info.main([str(tmp_path / "x.ckpt"), str(tmp_path / "y.pt")]) == 0
    told = capsys.readouterr().out
    assert re.search(r"kind +Stable Diffusion 1", told)
    assert re.search(r"averaged copy +yes", told)
    assert re.search(r"vectors +3 × 768", told)


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere.safetensors", "does not exist"), ("x.ckpt", "x.ckpt is truncated or not a weight")],
)
def test_info_refuses(
    tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"1")
    assert info.main([str(tmp_path / name)]) == 1
    assert message in capsys.readouterr().err


def test_convert_merges_a_lora(folder: Path, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert.main([str(folder), str(out), "--lora", f"{lora}:0.5", "--dtype", "float32"]) == 0
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    pipe.load_lora_weights(lora, scale=0.5)
    merged = Pipeline.from_pretrained(out, device="cpu").unet.state_dict()
    for key, value in pipe.unet.state_dict().items():
        assert torch.equal(merged[key], value)


def test_convert_overwrites_only_by_force(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert.main([str(folder), str(out)]) == 0
    assert dtypes(out) == {torch.float32}
    assert convert.main([str(folder), str(out), "--dtype", "float16"]) == 1
    assert "already exists" in capsys.readouterr().err
    assert convert.main([str(folder), str(out), "--dtype", "float16", "--force"]) == 0
    assert dtypes(out) == {torch.float16}
    assert names(tmp_path) == ["out"]


def test_convert_never_replaces_a_folder_of_something_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert convert.main([str(folder), str(tmp_path), "--force"]) == 1
    assert "of no model; it is not overwritten" in capsys.readouterr().err
    assert names(tmp_path) == ["mine.txt"]


def test_what_float16_cannot_hold_is_not_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(folder, model)
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"conv_in.bias": torch.full((32,), 1e5)}, file, {"format": "pt"})
    assert convert.main([str(model), str(out), "--dtype", "float16"]) == 1
    assert "conv_in.bias has values that are NaN or infinite in float16" in capsys.readouterr().err
    assert names(tmp_path) == ["model"]


def test_a_conversion_that_fails_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This model's sizes are of no family, so that there is no single-file layout for it."""
    out = tmp_path / "out"
    out.mkdir()
    assert convert.main([str(folder), str(out / "x.safetensors")]) == 1
    assert "save a folder instead" in capsys.readouterr().err
    assert not names(out)


def test_options_with_scales(tmp_path: Path) -> None:
    """As in a tag: one scale is that of both; the first of two is the text encoder's."""
    file = Path("a/b.safetensors")
    assert lora_option("a/b.safetensors") == (file, TagScale(1, 1))
    assert lora_option("a/b.safetensors:0.5") == (file, TagScale(0.5, 0.5))
    assert lora_option("a/b.safetensors:0.5:-2") == (file, TagScale(text_encoder=0.5, unet=-2))
    assert lora_option("c:/b.safetensors") == (Path("c:/b.safetensors"), TagScale())
    assert lora_option("c:/b.safetensors:2") == (Path("c:/b.safetensors"), TagScale(2, 2))
    (tmp_path / "x:3").write_bytes(b"")
    assert lora_option(f"{tmp_path}/x:3") == (tmp_path / "x:3", TagScale())
    assert lora_option(f"{tmp_path}/x:3:4") == (tmp_path / "x:3", TagScale(4, 4))
    for bad in ("b:x", "b:", "b:nan", "b:1:inf"):
        with pytest.raises(ArgumentError, match="must be a number"):
            lora_option(bad)


@pytest.mark.parametrize(
    ("text", "tag"), [("x.pt", "x:1"), ("x.pt:0.5", "x:0.5"), ("x.pt:0.5:2", "x:0.5:2")]
)
def test_options_as_tags(text: str, tag: str) -> None:
    assert lora_tag(*lora_option(text)) == f"<lora:{tag}>"
    (found,) = split_tags(f"<lora:{tag}>")[1]
    assert found[1:] == lora_option(text)[1]


def test_names_in_tags(tmp_path: Path) -> None:
    """A file's name or its path in the folder, its ending or not; capitals as a last resort."""
    (tmp_path / "people").mkdir()
    one, two = tmp_path / "people" / "Ann.v1.safetensors", tmp_path / "STYLE.PT"
    for path in (one, two, tmp_path / "zz.png"):
        path.write_bytes(b"")
    for name in ("Ann.v1", "Ann.v1.safetensors", "people/Ann.v1", "people\\Ann.v1", "ann.V1"):
        assert find_lora(name, tmp_path) == one
    assert find_lora("style", tmp_path) == two
    with pytest.raises(ArgumentError, match=r"<lora:x>: .* has no such file"):
        find_lora("x", tmp_path)
    with pytest.raises(ArgumentError, match="has no such file"):
        find_lora("zz", tmp_path)


def draw(folder: Path, output: Path, *arguments: str) -> Any:
    command = ["--model", str(folder), "--output", str(output), "--seed", "1", "--steps", "2"]
    assert generate.main([*arguments, *command, "--force"]) == 0
    return Image.open(output)


def test_loras_of_a_command(folder: Path, lora: Path, tmp_path: Path) -> None:
    """By option and by tag: one picture; each prompt has its own; the file tells the prompt."""
    out = tmp_path / "x.png"
    plain = draw(folder, out, "a car").tobytes()
    option = draw(folder, out, "a car", "--lora", f"{lora}:0.5").tobytes()
    assert option != plain
    tag = ["a car <lora:style:0.5>", "--lora-dir", str(tmp_path)]
    picture = draw(folder, out, *tag)
    assert picture.tobytes() == option
    assert picture.text["parameters"].startswith("a car <lora:style:0.5>\n")
    for other in ("<LoRA:Style:0.5>", "<lyco:style:te=3:unet=0.5>", "<lora:style:0:0.5>"):
        # The file changes no text encoder.
        assert draw(folder, out, f"a car {other}", *tag[1:]).tobytes() == option
    assert draw(folder, out, "a car", "--lora", f"{lora}:7:0.5").tobytes() == option
    assert draw(folder, out, "a car <lora:style:0.5:0>", *tag[1:]).tobytes() == plain
    both = [tag[0], "a car", *tag[1:], "--model", str(folder), "--output", str(out)]
    assert generate.main([*both, "--seed", "1", "--steps", "2"]) == 0
    assert Image.open(tmp_path / "x-1.png").tobytes() == option
    draw(folder, tmp_path / "b.png", "a car", "--lora", f"{lora}:0.5")
    again = ["--from", str(tmp_path / "b.png"), "--model", str(folder), "--output", str(out)]
    assert generate.main([*again, *tag[1:], "--force"]) == 0
    assert Image.open(out).tobytes() == option


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a <lora:style:0.5:lbw=OUTALL>"], "lbw= (block weights) is not supported"),
        (["a <lora:style"], "does not end"),
        (["a", "--negative-prompt", "<lora:style:1>"], "the negative prompt has '<lora:style:1>'"),
    ],
)
def test_tags_that_are_refused(
    folder: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--model", str(folder), "--output", str(tmp_path / "x.png")]
    assert generate.main([*arguments, *command]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_a_tag_in_python_is_no_word(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    for words in (["a <lyco:x:1>"], ["a", "<lora:x>"]):
        with pytest.raises(ArgumentError, match="drawn as words; load the file with"):
            pipe(*words[:1], negative_prompt=words[1] if len(words) > 1 else None)


def test_a_part_of_a_lora(
    folder: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(lora) | {"lora_unet_double_blocks_0_x.lora_up.weight": torch.zeros(1, 1)}
    save_file(tensors, tmp_path / "part.safetensors")
    out = tmp_path / "x.png"
    command = ["a", "--lora", f"{tmp_path}/part.safetensors", "--model", str(folder), "--steps=1"]
    assert generate.main([*command, "--output", str(out)]) == 1
    assert "2 of 3 keys fit this model" in (told := capsys.readouterr().err)
    assert "the others are 1 for Flux (such as lora_unet_double_blocks_0_x.lora_up" in told
    assert not out.exists()
    assert generate.main([*command, "--output", str(out), "--partial-lora"]) == 0
    assert "2 of 3 keys applied; left out: 1 for Flux" in capsys.readouterr().err
    whole = [str(folder), str(tmp_path / "out"), *command[1:3]]
    assert convert.main(whole) == 1
    assert convert.main([*whole, "--partial-lora"]) == 0


@pytest.mark.parametrize("stem", ["other", "style"])
def test_a_lora_that_is_not_there(
    folder: Path, tmp_path: Path, stem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "style.safetensors").write_bytes(b"")
    command = [f"a <lora:{stem}>", "--lora-dir", str(tmp_path), "--model", str(folder)]
    assert generate.main([*command, "--output", str(tmp_path / "x.png")]) == (
        2 if stem == "other" else 1
    )
    assert not (tmp_path / "x.png").exists()
    assert len(capsys.readouterr().err.splitlines()) == 1
