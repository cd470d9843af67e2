"""LoRA files that are broken, for another model or of another kind: one line, and no change."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch import zeros as z

from ldm.checkpoints.describe import describe_header
from ldm.checkpoints.header import read_header
from ldm.errors import ArgumentError, CheckpointError, LDMError
from ldm.pipeline import Pipeline

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
LINEAR, KERNEL = f"{BLOCK}_attn1_to_q", "lora_unet_mid_block_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def valid() -> dict[str, Tensor]:
    """A LoRA of few layers for the small "sd": linear, DoRA, convolution, Tucker, text."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng) * 0.1

    return {
        f"{LINEAR}.lora_down.weight": normal(2, 64),
        f"{LINEAR}.lora_up.weight": normal(64, 2),
        f"{LINEAR}.alpha": torch.tensor(1.0),
        f"{BLOCK}_attn2_to_k.lora_down.weight": normal(2, 32),
        f"{BLOCK}_attn2_to_k.lora_up.weight": normal(64, 2),
        f"{BLOCK}_attn2_to_k.dora_scale": normal(64, 1).abs() + 1,
        f"{KERNEL}.lora_down.weight": normal(3, 64, 3, 3),
        f"{KERNEL}.lora_up.weight": normal(64, 3, 1, 1),
        "lora_unet_mid_block_resnets_0_conv2.lora_down.weight": normal(2, 64, 1, 1),
        "lora_unet_mid_block_resnets_0_conv2.lora_mid.weight": normal(3, 2, 3, 3),
        "lora_unet_mid_block_resnets_0_conv2.lora_up.weight": normal(64, 3, 1, 1),
        f"{TEXT}.lora_down.weight": normal(2, 32),
        f"{TEXT}.lora_up.weight": normal(64, 2),
        f"{TEXT}.alpha": torch.tensor(2),
    }


@pytest.fixture
def ours(models: Any) -> Iterator[Pipeline]:
    """A pipeline that must be as it was when a test ends."""
    pipe, _ = models("sd")
    before = {module: layer.weight for module, layer in pipe.loras.layers.items()}
    copies = {module: weight.clone() for module, weight in before.items()}
    yield pipe
    pipe.unload_lora_weights()
    assert not pipe.loras.base
    for module, layer in pipe.loras.layers.items():
        assert layer.weight is before[module]
        assert layer.weight.equal(copies[module])


def refused(pipe: Pipeline, path: Path, error: type[LDMError] = CheckpointError) -> str:
    """The message of a file that must not load, nor leave a trace."""
    with pytest.raises(error) as caught:
        pipe.load_lora_weights(path)
    assert not pipe.loras.loaded
    assert not pipe.loras.base
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_valid_file_is_applied_whole(ours: Pipeline, tmp_path: Path) -> None:
    save_file(valid(), tmp_path / "x.safetensors")
    lora = ours.load_lora_weights(tmp_path / "x.safetensors")
    assert (lora.applied, lora.total) == (14, 14)
    assert len(ours.loras.base) == len(lora.updates) == 5


NAN, INF = torch.tensor(float("nan")), torch.tensor(float("inf"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{LINEAR}.lora_down.weight": z(2, 99)}, r"factors \(64, 2\) and \(2, 99\) for a weight"),
        ({f"{LINEAR}.lora_down.weight": z(3, 64)}, r"factors \(64, 2\) and \(3, 64\)"),
        ({f"{LINEAR}.lora_down.weight": z(64)}, r"factors \(64, 2\) and \(64,\)"),
        ({f"{LINEAR}.lora_up.weight": z(())}, r"factors \(\) and \(2, 64\)"),
        ({f"{LINEAR}.lora_down.weight": z(0, 64), f"{LINEAR}.lora_up.weight": z(64, 0)}, "factors"),
        ({f"{KERNEL}.lora_down.weight": z(3, 3, 3, 64)}, "factors"),
        ({f"{KERNEL}.lora_down.weight": z(3, 576)}, "factors"),
        ({f"{KERNEL}.lora_mid.weight": z(3, 3, 3, 3)}, "factors"),
        ({f"{LINEAR}.lora_mid.weight": z(2, 2)}, "factors"),
        ({f"{LINEAR}.lora_down.weight": z(2, 64).long()}, "to_q.lora_down.weight is torch.int64"),
        ({f"{LINEAR}.lora_up.weight": NAN.expand(64, 2)}, "to_q.lora_up.weight holds NaN"),
        ({f"{TEXT}.lora_down.weight": INF.expand(2, 32)}, "fc1.lora_down.weight holds NaN or inf"),
        ({f"{LINEAR}.alpha": NAN}, "to_q.alpha holds NaN"),
        ({f"{LINEAR}.alpha": z(0)}, r"to_q.alpha has shape \(0,\), not one number"),
        ({f"{LINEAR}.alpha": z(2)}, r"to_q.alpha has shape \(2,\)"),
        ({f"{LINEAR}.lora_up.weight": torch.full((64, 2), 1e38),
          f"{LINEAR}.alpha": torch.tensor(1e3)}, r"of unet\.mid_block.* are not finite with x"),
        ({f"{BLOCK}_attn2_to_k.dora_scale": z(63, 1)}, r"dora_scale has shape \(63, 1\)"),
        ({f"{BLOCK}_attn2_to_k.dora_scale": z(32)}, r"dora_scale has shape \(32,\)"),
        ({f"{BLOCK}_attn2_to_k.dora_scale": z(())}, r"dora_scale has shape \(\)"),
        ({f"{LINEAR}.lora_magnitude_vector": z(65)}, r"magnitude_vector has shape \(65,\)"),
    ],
)  # fmt: skip
def test_broken_tensors_are_named(
    ours: Pipeline, tmp_path: Path, change: dict[str, Tensor], message: str
) -> None:
    tensors = {name: value.contiguous() for name, value in (valid() | change).items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert re.search(message, refused(ours, tmp_path / "x.safetensors"))


UNSUPPORTED = {
    "T-LoRA": {".p_layer.weight": (64, 2), ".q_layer.weight": (2, 64), ".lambda_layer": (1, 2)},
    "VeRA": {".vera_lambda_b": (64,), ".vera_lambda_d": (2,)},
    "HRA": {".hra_u.default": (64, 2)},
    "peft's first OFT": {".oft_r.default": (4, 16, 16)},
    "LoRA of embeddings": {".lora_embedding_A": (2, 64), ".lora_embedding_B": (64, 2)},
    "sparse residual": {".bias_indices": (2, 5), ".bias_values": (5,), ".bias_size": (2,)},
    "whole-weight": {".set_weight": (64, 64)},
}


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_algorithms_are_named(ours: Pipeline, tmp_path: Path, kind: str, part: bool) -> None:
    """Whole files, and layers of them beside a LoRA's: never a half of what was trained."""
    tensors = {f"{LINEAR}{end}": z(shape) for end, shape in UNSUPPORTED[kind].items()}
    tensors[f"{LINEAR}.alpha"] = torch.tensor(1.0)
    path = tmp_path / "x.safetensors"
    save_file((valid() if part else {}) | tensors, path)
    told = refused(ours, path)
    assert f"{path} holds {kind} tensors (" in told
    assert told.endswith("OFT, BOFT, IA3 and full differences are")
    rows = dict(describe_header(read_header(path), path))
    assert rows["kind"] == ("DoRA with " if part else "") + f"{kind} (not supported)"
    assert rows["layers"].startswith(f"{4 if part else 1} of the U-Net")


WRONG = {
    "LoHa": {".hada_w1_a": (64, 2), ".hada_w1_b": (2, 64),
             ".hada_w2_a": (64, 2), ".hada_w2_b": (2, 32)},
    "LoHa, a row": {".hada_w1_a": (64, 2), ".hada_w1_b": (2, 64),
                    ".hada_w2_a": (1, 2), ".hada_w2_b": (2, 64)},
    "LoKr": {".lokr_w1": (8, 8), ".lokr_w2": (8, 4)},
    "LoKr, rank": {".lokr_w1": (8, 8), ".lokr_w2_a": (8, 2), ".lokr_w2_b": (3, 8)},
    "LoKr, a number": {".lokr_w1": (8, 8), ".lokr_w2_a": (8, 2), ".lokr_w2_b": ()},
    "LoKr, huge": {".lokr_w1": (6400, 64), ".lokr_w2": (6400, 64)},
    "GLoRA": {".a1.weight": (64, 2), ".a2.weight": (2, 32),
              ".b1.weight": (64, 2), ".b2.weight": (2, 64)},
    "OFT": {".oft_blocks": (4, 8, 8)},
    "OFT, not square": {".oft_blocks": (4, 16, 8)},
    "BOFT": {".oft_blocks": (9, 4, 16, 16)},
    "BOFT, none": {".oft_blocks": (0, 4, 16, 16)},
    "peft's OFT": {".oft_R.weight": (4, 119)},
    "peft's OFT, count": {".oft_R.weight": (3, 120)},
    "peft's BOFT": {".boft_R": (1, 4, 8, 8), ".boft_s": (64, 1)},
    "peft's BOFT, none": {".boft_R": (0, 4, 16, 16), ".boft_s": (64, 1)},
    "IA3": {".weight": (32,), ".on_input": ()},
    "peft's IA3": {".ia3_l": (32, 1)},
    "full difference": {".diff": (64, 32)},
    "bias": {".diff_b": (64,)},  # to_q has none
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_shapes_of_other_kinds(ours: Pipeline, tmp_path: Path, kind: str) -> None:
    tensors = {f"{LINEAR}{end}": z(shape) for end, shape in WRONG[kind].items()}
    save_file(tensors, tmp_path / "x.safetensors")
    message = r"attn1_to_q has factors \([\d, ]*\).* for a weight \(64, 64\)"
    assert re.search(message, refused(ours, tmp_path / "x.safetensors"))


@pytest.mark.parametrize(("model", "other"), [("sd", "sdxl"), ("sdxl", "sd")])
def test_another_family(models: Any, tmp_path: Path, model: str, other: str) -> None:
    """Also beside a LoRA that is on, which stays on."""
    pipe, _ = models(model)
    theirs, _ = models(other)
    path, mine = tmp_path / "x.safetensors", tmp_path / "mine.safetensors"
    for file, source in ((path, theirs), (mine, pipe)):
        tensors = {}
        for name, layer in source.unet.named_modules():
            if name.endswith(("attn1.to_q", "attn2.to_k")):
                out, inner = layer.weight.shape
                tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, inner)
                tensors[f"unet.{name}.lora_B.weight"] = torch.randn(out, 2)
        save_file(tensors, file)
    pipe.load_lora_weights(mine)
    before = {module: layer.weight for module, layer in pipe.loras.layers.items()}
    try:
        width = {"sd": 32, "sdxl": 80}
        with pytest.raises(CheckpointError, match=rf"\(texts of width {width[other]}\), but this "):
            pipe.load_lora_weights(path)
        assert list(pipe.loras.loaded) == ["mine"]
        assert all(layer.weight is before[module] for module, layer in pipe.loras.layers.items())
    finally:
        pipe.unload_lora_weights()


def test_an_overflow_leaves_what_was_on(ours: Pipeline, tmp_path: Path) -> None:
    save_file(valid(), tmp_path / "good.safetensors")
    huge = {f"{KERNEL}.lora_up.weight": torch.full((64, 3, 1, 1), 1e38)}
    huge[f"{KERNEL}.alpha"] = torch.tensor(1e3)
    save_file(valid() | huge, tmp_path / "bad.safetensors")
    ours.load_lora_weights(tmp_path / "good.safetensors", scale=0.5)
    on = {module: ours.loras.layers[module].weight.clone() for module in ours.loras.base}
    with pytest.raises(CheckpointError, match=r"conv1 are not finite with good, bad"):
        ours.load_lora_weights(tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        ours.set_adapters("good", 1e39)
    assert list(ours.loras.loaded) == ["good"]
    assert ours.loras.loaded["good"].scale == 0.5
    assert all(ours.loras.layers[module].weight.equal(value) for module, value in on.items())


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_scales_are_finite(ours: Pipeline, tmp_path: Path, scale: float) -> None:
    save_file(valid(), tmp_path / "x.safetensors")
    with pytest.raises(ArgumentError, match=f"scale is {scale}"):
        ours.load_lora_weights(tmp_path / "x.safetensors", scale=scale)
    ours.load_lora_weights(tmp_path / "x.safetensors")
    with pytest.raises(ArgumentError, match=f"scale is {scale}"):
        ours.set_adapters("x", scale)


@pytest.mark.parametrize(
    ("dropped", "applied"),
    [
        ([f"{LINEAR}.lora_up.weight"], 11),
        ([f"{LINEAR}.lora_down.weight", f"{TEXT}.lora_down.weight"], 8),
    ],
)
def test_halves_are_refused_unless_told_to_go_on(
    ours: Pipeline, tmp_path: Path, dropped: list[str], applied: int
) -> None:
    tensors = {name: value for name, value in valid().items() if name not in dropped}
    save_file(tensors, tmp_path / "x.safetensors")
    told = refused(ours, tmp_path / "x.safetensors")
    assert f"{applied} of {len(tensors)} keys fit this model" in told
    assert f"the others are {len(tensors) - applied} incomplete (such as " in told
    lora = ours.load_lora_weights(tmp_path / "x.safetensors", partial=True)
    assert (lora.applied, lora.total) == (applied, len(tensors))


@pytest.mark.parametrize("tensors", [{}, {"x": z(1)}, {f"{LINEAR}.lora_down.weight": z(2, 64)}])
def test_nothing_fits(ours: Pipeline, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    told = refused(ours, tmp_path / "x.safetensors")
    assert f"has {len(tensors)} keys, none of which fits this model" in told


def test_a_module_under_two_names(ours: Pipeline, tmp_path: Path) -> None:
    """diffusers' name comes first, wherever it is in the file; the other counts as unapplied."""
    names = ("lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q", LINEAR)
    tensors = {}
    for value, name in enumerate(names, 1):
        tensors[f"{name}.lora_down.weight"] = torch.full((1, 64), float(value))
        tensors[f"{name}.lora_up.weight"] = torch.ones(64, 1)
    save_file(tensors, tmp_path / "x.safetensors")
    lora = ours.load_lora_weights(tmp_path / "x.safetensors")
    assert (lora.applied, lora.total) == (2, 4)
    module = ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    change = ours.loras.layers[module].weight - ours.loras.base[module]
    assert (change - 2).abs().max() < 1e-5


def test_the_first_of_several_adapters_in_a_file(ours: Pipeline, tmp_path: Path) -> None:
    stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{stem}.lora_{end}.{name}.weight": torch.full((1, 64) if end == "A" else (64, 1), value)
        for name, value in (("first", 1.0), ("second", 2.0))
        for end in "AB"
    }
    save_file(tensors, tmp_path / "x.safetensors")
    assert "the others are 2 unknown" in refused(ours, tmp_path / "x.safetensors")
    lora = ours.load_lora_weights(tmp_path / "x.safetensors", partial=True)
    assert (lora.applied, lora.total) == (2, 4)
    (factors,) = lora.updates.values()
    assert factors.tensors["down"].equal(torch.ones(1, 64))


ENDS = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale")
ENDS += ("lora_A.weight", "lora_B.default.weight", "hada_w1_a", "lora_magnitude_vector", "weight")
ENDS += ("oft_blocks", "diff", "diff_b", "lokr_w1", "on_input", "ia3_l", "oft_R.weight", "rescale")


def mutate(tensors: dict[str, Tensor], rng: random.Random) -> None:
    """Change one thing, in place."""
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    sizes = (0, 1, 2, 3, 32, 64, 600)
    kind = rng.randrange(10)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        other = rng.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], value
    elif kind == 2:
        tensors[name] = value[None] if rng.random() < 0.5 else value[..., None]
    elif kind == 3:
        few = value.flatten()[: rng.choice((0, 1, 5))]
        tensors[name] = few if rng.random() < 0.5 else few[:, None]
    elif kind == 4:
        dtypes = (torch.int32, torch.float16, torch.float64, torch.bool, torch.float8_e4m3fn)
        tensors[name] = value.to(rng.choice(dtypes))
    elif kind == 5:  # a huge rank, for the whole pair or the half
        rank = rng.choice(sizes)
        stem = name.partition(".")[0]
        if rng.random() < 0.7:
            tensors[f"{stem}.lora_up.weight"] = torch.randn(64, rank)
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, rng.choice((32, 64)))
    elif kind == 6:
        tensors[f"{name.partition('.')[0]}.{rng.choice(ENDS)}"] = tensors.pop(name)
    elif kind == 7:
        bad = (float("nan"), float("inf"), 1e38, -1e30, 0.0)
        tensors[name] = torch.full_like(value, rng.choice(bad), dtype=torch.float32)
    elif kind == 8:
        tensors[name] = torch.randn([rng.choice(sizes[:5]) for _ in range(rng.randrange(5))])
    else:
        stem = name.partition(".")[0]
        tensors[f"{stem}.{rng.choice(ENDS)}"] = value.transpose(0, -1) if value.ndim > 1 else value


def test_mutated_files_load_finite_or_are_refused(ours: Pipeline, tmp_path: Path) -> None:
    rng, path = random.Random(0), tmp_path / "x.safetensors"
    base = {module: layer.weight for module, layer in ours.loras.layers.items()}
    outcomes = {"loaded": 0, "in part": 0, "refused": 0}
    torch.manual_seed(0)
    for _ in range(500):
        tensors = valid()
        for _ in range(rng.randint(1, 3)):
            if tensors:
                mutate(tensors, rng)
        metadata = {"lora_adapter_metadata": json.dumps({"lora_alpha": rng.choice((1, "x"))})}
        whole = {name: value.clone().contiguous() for name, value in tensors.items()}
        save_file(whole, path, metadata if rng.random() < 0.1 else None)
        try:
            scale = rng.choice((1.0, -0.5, 0.0))
            lora = ours.load_lora_weights(path, scale=scale, partial=rng.random() < 0.7)
        except LDMError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)
            assert not ours.loras.loaded
        else:
            outcomes["loaded" if lora.applied == lora.total else "in part"] += 1
            for module in ours.loras.base:
                assert ours.loras.layers[module].weight.isfinite().all()
            ours.unload_lora_weights()
        assert not ours.loras.base
        assert all(layer.weight is base[module] for module, layer in ours.loras.layers.items())
    assert min(outcomes.values()) > 40, outcomes
