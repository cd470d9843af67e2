"""DoRA and convolution LoRA: peft's own layers on diffusers' U-Net with the same factors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm.adapters.lora import Loras, difference
from ldm.checkpoints.lora_names import Factors
from ldm.config import UNetConfig
from ldm.errors import CheckpointError
from ldm.loading.single_file import names_of
from ldm.unet import UNet
from tests.helpers.families import unet as small_unet
from tests.helpers.networks import difference as largest

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in"]
LAYERS += ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv"]
SCALES = (0.5, 1.0, -0.7)


def adapted(dora: bool, **settings: Any) -> Any:
    """diffusers' U-Net with random factors and, for a DoRA, random lengths."""
    unet = small_unet()
    config = peft.LoraConfig(
        r=3, target_modules=LAYERS, use_dora=dora, init_lora_weights=False, **settings
    )
    unet.add_adapter(config, "a")
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(torch.rand(parameter.shape, generator=rng) + 0.5)
            elif "lora_" in name:
                bound = math.sqrt(3 / parameter[0].numel()) * (0.5 if "lora_B" in name else 1)
                parameter.uniform_(-bound, bound, generator=rng)
    return unet.eval()


def saved(unet: Any, path: Path, dora_scale: bool = False) -> None:
    """The file that diffusers writes, its settings with it; or kohya's and LyCORIS' names."""
    unet.save_lora_adapter(
        path.parent, adapter_name="a", weight_name=path.name, safe_serialization=True
    )
    if not dora_scale:
        return
    tensors = {}
    for name, value in load_file(path).items():
        stem, _, kind = name.partition(".lora_")
        stem = f"lora_unet_{stem.replace('.', '_')}"
        kind, _, _ = kind.partition(".")
        if kind == "magnitude_vector":
            weight = tensors[f"{stem}.lora_down.weight"]
            tensors[f"{stem}.dora_scale"] = value.reshape(-1, *(1,) * (weight.ndim - 1))
        else:
            tensors[f"{stem}.lora_{'down' if kind == 'A' else 'up'}.weight"] = value
        tensors[f"{stem}.alpha"] = torch.tensor(5.0)
    save_file(tensors, path)


def ours_like(unet: Any) -> tuple[UNet, Loras]:
    from tests.helpers.networks import ours_like

    ours = ours_like(small_unet(), UNet, UNetConfig.from_dict(dict(unet.config), "config"))
    return ours, Loras({"unet": ours}, names_of(ours.config))


def layers(unet: Any) -> Iterator[tuple[str, Any]]:
    for path, layer in unet.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            yield path, layer


@pytest.mark.parity
@pytest.mark.parametrize("form", ["plain", "dora", "dora_scale"])
def test_same_weights_and_outputs_as_peft(tmp_path: Path, form: str) -> None:
    """α is 5 of rank 3: in diffusers' files its place is the metadata; it is inside the norm."""
    theirs = adapted(form != "plain", lora_alpha=5)
    file = tmp_path / "x.safetensors"
    saved(theirs, file, form == "dora_scale")
    ours, loras = ours_like(theirs)
    rng = torch.Generator().manual_seed(1)
    x, text = (torch.randn(shape, generator=rng) for shape in ((2, 4, 8, 8), (2, 7, 32)))
    worst = kernels = 0
    with torch.no_grad():
        plain = ours(x, torch.tensor([500, 20]), text)
        for scale in SCALES:
            lora = loras.load(file, scale=scale)
            assert lora.applied == lora.total
            theirs.set_adapters("a", scale)
            want = theirs(x, torch.tensor([500, 20]), text).sample
            got = ours(x, torch.tensor([500, 20]), text)
            assert largest(plain, want) > 0.05
            assert largest(got, want) < 2e-5
            for path, layer in layers(theirs):
                base = layer.weight.clone()
                layer.merge(safe_merge=True)
                merged = layer.weight.clone()
                layer.unmerge()
                layer.get_base_layer().weight.copy_(base)  # peft takes off inexactly
                mine = ours.get_submodule(path).weight
                assert largest(mine, base) > 0.02
                worst = max(worst, largest(mine, merged))
                kernels += merged.ndim == 4 and merged.shape[-1] == 3
            loras.unload()
    assert kernels >= 3 * 10
    print(f"{form}: weights differ by {worst:.1e}")
    assert worst < 1e-6


@pytest.mark.parity
def test_alpha_in_the_metadata_of_each_layer(tmp_path: Path) -> None:
    """alpha_pattern, rank_pattern and rank-stabilised scaling (α/√r), as peft has them."""
    settings = {"alpha_pattern": {"attn2.to_k": 7, "conv1": 2}, "rank_pattern": {"to_q": 2}}
    theirs = adapted(False, lora_alpha=5, use_rslora=True, **settings)
    saved(theirs, tmp_path / "x.safetensors")
    ours, loras = ours_like(theirs)
    loras.load(tmp_path / "x.safetensors")
    before = {path: layer.weight.clone() for path, layer in layers(theirs)}
    scales = set()
    for path, layer in layers(theirs):
        want = before[path] + layer.get_delta_weight("a")
        assert largest(ours.get_submodule(path).weight, want) < 1e-6
        scales.add(round(layer.scaling["a"], 4))
    assert len(scales) == 4


@pytest.mark.parametrize("text", ["{", "[1]", '{"unet.lora_alpha": "x"}', '{"lora_alpha": 1e999}'])
def test_settings_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    theirs = adapted(False)
    saved(theirs, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
    _, loras = ours_like(theirs)
    with pytest.raises(CheckpointError, match="its lora_adapter_metadata"):
        loras.load(tmp_path / "x.safetensors")


def lycoris(weight: Tensor, delta: Tensor, lengths: Tensor, by_input: bool) -> Tensor:
    """LyCORIS' rule at multiplier 1, in loops over rows or columns."""
    merged = weight + delta
    for i in range(merged.shape[int(by_input)]):
        part = merged[:, i] if by_input else merged[i]
        part *= lengths.flatten()[i] / part.square().sum().sqrt()
    return merged


@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize("shape", [(4, 5), (5, 5), (5, 5, 3, 3), (4, 5, 1, 1)])
def test_both_axes_of_lycoris(shape: tuple[int, ...], by_input: bool) -> None:
    """Rows (n, 1, …) or columns (1, n, …); where there are as many, the shape tells."""
    rng = torch.Generator().manual_seed(0)
    weight, down, up = (
        torch.randn(each, generator=rng)
        for each in (shape, (2, *shape[1:]), (shape[0], 2, *(1,) * (len(shape) - 2)))
    )
    count, ones = shape[int(by_input)], [1] * (len(shape) - 1)
    lengths = torch.rand(count, generator=rng) + 0.5
    lengths = lengths.reshape([1, count, *ones[1:]] if by_input else [count, *ones])
    factors = Factors(down=down, up=up, alpha=torch.tensor(3.0), dora_scale=lengths)
    delta = 1.5 * torch.einsum("or,r...->o...", up.flatten(1), down)
    want = lycoris(weight, delta, lengths, by_input)
    assert (weight + difference(weight, factors) - want).abs().max() < 2e-6


def test_a_row_of_zeros_stays_finite() -> None:
    weight, down, up = torch.zeros(2, 3), torch.ones(1, 3), torch.tensor([[0.0], [1.0]])
    found = difference(weight, Factors(down=down, up=up, magnitude=torch.tensor([1e9, 2.0])))
    assert found[0].equal(torch.zeros(3))
    assert math.isclose(found[1].norm(), 2, rel_tol=1e-6)


def test_convolution_lora_is_two_convolutions() -> None:
    rng = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(5, 4, 3, padding=1, stride=2).requires_grad_(False)
    down, up = torch.randn(2, 5, 3, 3, generator=rng), torch.randn(4, 2, 1, 1, generator=rng)
    x = torch.randn(1, 5, 8, 8, generator=rng)
    conv = nn.functional.conv2d
    want = layer(x) + 2 * conv(conv(x, down, padding=1, stride=2), up)
    layer.weight += difference(layer.weight, Factors(down=down, up=up, alpha=torch.tensor(4.0)))
    assert largest(layer(x), want) < 2e-5
