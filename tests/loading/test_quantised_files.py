"""Models in float8 and in GGUF: bit-equal to the same weights in float32, and what is made of them.

Tolerance: none. A file's values are computed once, so a model from them has the same bits as one
from a .safetensors file into which the reference package's values were written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.checkpoints.describe import describe
from ldm.checkpoints.tensors import read_tensors
from ldm.errors import CheckpointError
from ldm.pipeline import Pipeline
from tests.helpers.gguf_files import as_stable_diffusion_cpp, quantise, values, write
from tests.helpers.pictures import Drawn, draw, pixels
from tests.loading.test_single_file import files  # noqa: F401  # a fixture
from tests.loading.test_supplied_parts import UNET, same, split

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:.*does not say what its U-Net predicts.*:UserWarning"),
]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SMALL: dict[str, Any] = {"height": 40, "width": 64, "num_inference_steps": 2, "seed": 3}
LOAD: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
NAMES = ["sd", "sd2", "sdxl", "refiner"]
Tensors = dict[str, Tensor]


def load(path: Path, **arguments: Any) -> Pipeline:
    return Pipeline.from_pretrained(path, **LOAD, **arguments)


def same_pictures(ours: Pipeline, other: Pipeline) -> bool:
    return same(ours, other) and equal(draw(ours, **SMALL), draw(other, **SMALL))


def equal(a: Drawn, b: Drawn) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(pixels(a[1]), pixels(b[1]))


def in_float8(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """As people convert: all weights of two axes or more; the others stay float32 or float16."""
    return {
        key: value.to(dtype) if value.ndim > 1 else value.to(torch.float32 if i % 2 else torch.half)
        for i, (key, value) in enumerate(tensors.items())
    }


def scaled(tensors: Tensors, marker: bool) -> Tensors:
    """Scale the U-Net's linear layers so that the largest value is the largest of float8."""
    found: Tensors = {}
    for key, value in tensors.items():
        if value.ndim != 2 or not key.startswith(UNET):
            found[key] = value.half()
            continue
        stem = key.removesuffix("weight")
        factor = value.abs().max() / torch.finfo(E4M3).max
        found[key] = (value / factor).to(E4M3)
        found[f"{stem}scale_weight" if marker else f"{stem}weight_scale"] = factor
        found[f"{stem}scale_input" if marker else f"{stem}input_scale"] = torch.ones(())
        if not marker:
            found[f"{stem}comfy_quant"] = torch.tensor(list(b"{}"), dtype=torch.uint8)
    return found | ({f"{UNET}scaled_fp8": torch.zeros(0, dtype=E4M3)} if marker else {})


@pytest.mark.parametrize(("name", "dtype"), [("sd", E5M2), *((name, E4M3) for name in NAMES)])
def test_float8(files: Any, name: str, dtype: torch.dtype) -> None:  # noqa: F811
    _, _, path = files(name)
    tensors = in_float8(load_file(path), dtype)
    save_file({key: value.float() for key, value in tensors.items()}, path)
    want = load(path)
    save_file(tensors, path)
    assert same_pictures(load(path), want)
    rounded = Pipeline.from_pretrained(path, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in rounded.unet.parameters()} == {torch.bfloat16}
    kept = Pipeline.from_pretrained(path, device="cpu", dtype="auto")
    assert {p.dtype for p in kept.unet.parameters()} == {torch.float32}  # its norms' own


def test_no_dtype_is_float8(files: Any) -> None:  # noqa: F811
    _, _, path = files("sd")
    save_file({key: value.to(E4M3) for key, value in load_file(path).items()}, path)
    for dtype, want in ((None, {torch.float32, torch.bfloat16}), ("auto", {torch.float16})):
        pipe = Pipeline.from_pretrained(path, device="cpu", dtype=dtype)
        assert {p.dtype for p in pipe.unet.parameters()} <= want


@pytest.mark.parametrize(("name", "marker"), [("sd", True), ("sdxl", False)])
def test_scaled_float8(files: Any, name: str, marker: bool) -> None:  # noqa: F811
    ours, _, path = files(name)
    tensors = scaled(load_file(path), marker)
    ends = ("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant", "fp8")
    plain = {}
    for key, value in tensors.items():
        stem = key.removesuffix("weight")
        factor = tensors.get(f"{stem}scale_weight", tensors.get(f"{stem}weight_scale"))
        if not key.endswith(ends):
            plain[key] = value.float() if factor is None else value.float() * factor
    save_file(plain, path)
    want = load(path)
    save_file(tensors, path)
    assert same_pictures(load(path), want)
    difference = ours.unet.conv_in.weight - load(path).unet.conv_in.weight
    assert difference.abs().max() < 1e-3
    assert dict(describe(path))["kind"].startswith("Stable Diffusion")


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_a_folder_in_float8(files: Any, tmp_path: Path, dtype: torch.dtype) -> None:  # noqa: F811
    ours, _, _ = files("sdxl")
    ours.save_pretrained(tmp_path / "m")
    for file in (tmp_path / "m").glob("*/*.safetensors"):
        tensors = in_float8(load_file(file), dtype)
        save_file({key: value.float() for key, value in tensors.items()}, file)
        save_file(tensors, file.with_suffix(".new"), {"format": "pt"})
    want = load(tmp_path / "m")
    for file in (tmp_path / "m").glob("*/*.new"):
        file.replace(file.with_suffix(".safetensors"))
    assert same_pictures(load(tmp_path / "m"), want)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "Q8_0") for name in NAMES), *(("sd", kind) for kind in ("Q4_0", "Q5_1", "F16"))],
)
def test_stable_diffusion_cpp(files: Any, tmp_path: Path, name: str, kind: str) -> None:  # noqa: F811
    """A whole model under the original names, without metadata."""
    _, _, path = files(name)
    blocks = as_stable_diffusion_cpp(load_file(path), kind)
    gguf = write(tmp_path / "x.gguf", blocks)
    save_file({key: values(value) for key, value in blocks.items()}, path)
    stated = {"prediction_type": "epsilon"} if name == "sd2" else {}
    assert same_pictures(load(gguf, **stated), load(path, **stated))


QKV = "attn.in_proj_"
RENAMED = {
    "ln_final.": "transformer.text_model.final_layer_norm.",
    "positional_embedding": "transformer.text_model.embeddings.position_embedding.weight",
    "token_embedding.": "transformer.text_model.embeddings.token_embedding.",
    "transformer.resblocks.": "transformer.text_model.encoder.layers.",
    "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip


def as_converted_before_2026(tensors: Tensors, joined: bool) -> Tensors:
    """As the converter renamed until then. joined: as in its last weeks."""
    found: Tensors = {}
    for key, value in tensors.items():
        for i, prefix in ((0, "cond_stage_model."), (1, "cond_stage_model.1.")):
            key = key.replace(f"conditioner.embedders.{i}.", prefix)
        head, open_clip, rest = key.partition(".model.")
        if not head.startswith("cond_stage_model") or not open_clip:
            found[key] = value
            continue
        if rest == "text_projection":
            found[f"{head}.transformer.text_model.text_projection"] = value
            continue
        for old, new in RENAMED.items():
            rest = rest.replace(old, new)
        if QKV not in rest:
            found[f"{head}.{rest}"] = value
        elif joined:
            found[f"{head}.{rest.replace(QKV, 'self_attn.in_proj.')}"] = value
        else:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                found[f"{head}.{rest.replace(QKV, f'self_attn.{part}_proj.')}"] = third
    return found


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("name", ["sd2", "sdxl", "refiner"])
def test_names_of_the_converter_before_2026(
    files: Any,  # noqa: F811
    tmp_path: Path,
    name: str,
    joined: bool,
) -> None:
    ours, _, path = files(name)
    tensors = as_converted_before_2026(load_file(path), joined)
    assert not any(".model." in key for key in tensors if key.startswith("cond_stage_model"))
    gguf = write(tmp_path / "x.gguf", as_stable_diffusion_cpp(tensors, "F32"))
    stated = {"prediction_type": ours.scheduler.config.prediction_type}
    assert same_pictures(load(gguf, **stated), ours)


def test_a_vae_that_was_given_to_the_converter(files: Any, tmp_path: Path) -> None:  # noqa: F811
    ours, _, path = files("sd")
    tensors = load_file(path)
    own = {key: value + 1 for key, value in tensors.items() if key.startswith("first_stage")}
    given = {key.replace("first_stage_model.", "vae."): tensors[key] for key in own}
    gguf = write(tmp_path / "x.gguf", as_stable_diffusion_cpp(tensors | own | given, "F32"))
    assert same(load(gguf), ours)
    save_file(given, path)
    assert torch.equal(
        load(gguf, vae=path).vae.decoder.conv_in.weight, ours.vae.decoder.conv_in.weight
    )


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_comfyui_gguf(files: Any, tmp_path: Path, name: str) -> None:  # noqa: F811
    """A U-Net alone, whose rows that no block fits are folded into rows of 256."""
    _, _, path = files(name)
    unet, vae, text = split(path)
    tensors = {key.removeprefix(UNET): value for key, value in load_file(unet).items()}
    blocks, folded = {}, {}
    for key, value in tensors.items():
        fold = value.ndim > 1 and value.numel() % 256 == 0 and value.shape[-1] % 256
        if fold:
            folded[key] = tuple(value.shape)
        kind = "Q4_0" if fold else "F32" if value.ndim == 1 else "F16"
        blocks[key] = quantise(value.reshape(-1, 256) if fold else value, kind)
    assert len(folded) > 10
    gguf = write(tmp_path / "x.gguf", blocks, name, folded)
    plain = {
        key: values(value).reshape(folded.get(key, tensors[key].shape))
        for key, value in blocks.items()
    }
    save_file(plain, unet)
    given = {"vae": vae, "text_encoder": text}
    assert same_pictures(load(gguf, **given), load(unet, **given))
    rows = dict(describe(gguf))
    assert (rows["format"], rows["kind"]) == ("GGUF", "U-Net")
    assert "Q4_0" in rows["weights"]
    with pytest.raises(CheckpointError) as caught:
        load(gguf)
    assert "x.gguf lacks a VAE and the text encoder" in str(caught.value)
    assert "give them: --vae FILE --text-encoder FILE" in str(caught.value)


def test_parts_from_a_gguf(files: Any, tmp_path: Path) -> None:  # noqa: F811
    ours, _, path = files("sdxl")
    unet, vae, text = split(path)
    parts = [
        write(tmp_path / f"{file.stem}.gguf", as_stable_diffusion_cpp(load_file(file), "F32"))
        for file in (unet, vae, text)
    ]
    assert same(load(parts[0], vae=parts[1], text_encoder=parts[2]), ours)


def test_adapters_on_a_model_of_blocks(files: Any, tmp_path: Path) -> None:  # noqa: F811
    """LoRA, a new word, ``optimize`` and 8 bits: as on the model of the same values."""
    _, _, path = files("sd")
    blocks = as_stable_diffusion_cpp(load_file(path), "Q8_0")
    gguf = write(tmp_path / "x.gguf", blocks)
    save_file({key: values(value) for key, value in blocks.items()}, path)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    factors = {
        f"{layer}.lora_down.weight": torch.randn(4, 32),
        f"{layer}.lora_up.weight": torch.randn(32, 4),
    }
    lora, word = tmp_path / "lora.gguf", tmp_path / "cat.safetensors"
    write(lora, {key: quantise(value, "F16") for key, value in factors.items()})
    save_file({"emb_params": torch.randn(2, 32)}, word)
    pictures = []
    for file in (gguf, path):
        pipe = load(file)
        before = draw(pipe, prompt="cat", **SMALL)
        pipe.load_lora_weights(lora)
        pipe.load_textual_inversion(word, "cat")
        with_all = draw(pipe, prompt="cat", **SMALL)
        assert not equal(before, with_all)
        pipe.unload_lora_weights()
        pipe.unload_textual_inversion()
        assert equal(before, draw(pipe, prompt="cat", **SMALL))
        pipe.optimize(int8=True)
        pictures.append((before, with_all, draw(pipe, prompt="cat", **SMALL)))
    assert all(map(equal, *pictures))


def test_a_scale_that_is_missing_is_named(files: Any) -> None:  # noqa: F811
    _, _, path = files("sd")
    tensors = scaled(load_file(path), marker=True)
    key = next(key for key in tensors if key.endswith("scale_weight"))
    del tensors[key]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"holds scaled weights by its .*scaled_fp8, but"):
        load(path)
    with pytest.raises(CheckpointError, match="has no scale; get the model again"):
        read_tensors(path)
