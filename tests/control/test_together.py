"""All that steers by pictures on one model at once, and beside what shares self-attention."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.pipeline import Pipeline
from tests.control.test_control_lllite import lllite_for
from tests.helpers.controlnets import controlnet_for
from tests.helpers.ip_adapters import adapter_tensors, image_encoder, save_adapter
from tests.helpers.networks import difference
from tests.helpers.t2i_adapters import adapter, base_of, noisy

SETTINGS: dict[str, Any] = {
    "prompt": ["a red car", "a cat"], "num_inference_steps": 3, "height": 64, "width": 96,
    "seed": 5, "guidance_scale": 3.0, "output_type": "latent",
}  # fmt: skip
PICTURES: dict[str, Any] = {
    "control_image": [noisy(1), noisy(2)], "adapter_image": noisy(3), "ip_adapter_image": noisy(4),
}  # fmt: skip
OFF = {
    "the ControlNet": {"controlnet_conditioning_scale": [0.0, 1.0]},
    "the LLLite": {"controlnet_conditioning_scale": [1.0, 0.0]},
    "the T2I-Adapter": {"adapter_conditioning_scale": 0.0},
    "the IP-Adapter": {"ip_adapter_scale": 0.0},
}
SHARED: dict[str, dict[str, Any]] = {
    "a reference": {"reference_image": noisy(6)},
    "adain": {"reference_image": noisy(6), "reference_mode": "attention+adain"},
    "style-aligned": {"style_aligned": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SD with a ControlNet, a ControlNet-LLLite, a T2I-Adapter and an IP-Adapter."""
    folder, theirs = tmp_path_factory.mktemp("together"), base_of("sd")
    theirs.save_pretrained(folder / "base")
    controlnet_for(theirs).save_pretrained(folder / "net")
    adapter("full").save_pretrained(folder / "adapter")
    image_encoder(folder / "image_encoder")
    unet = Pipeline.from_pretrained(folder / "base", device="cpu").unet
    save_adapter(folder / "ip.safetensors", adapter_tensors(unet.config, "plus"))
    save_file(lllite_for(unet), folder / "lllite.safetensors")
    return folder


@pytest.fixture
def pipe(folder: Path) -> Iterator[Pipeline]:
    nets = [folder / "net", folder / "lllite.safetensors"]
    pipe = Pipeline.from_pretrained(folder / "base", controlnet=nets, device="cpu")
    pipe.load_t2i_adapter(folder / "adapter")
    pipe.load_ip_adapter(folder / "ip.safetensors")
    yield pipe


def drawn(pipe: Pipeline, **more: Any) -> torch.Tensor:
    return pipe(**SETTINGS | PICTURES | more).images  # type: ignore[return-value]


def test_each_counts_and_all_come_off(pipe: Pipeline, folder: Path) -> None:
    """Without any one, the picture is another; without all, it is the base's, to the bit."""
    whole = drawn(pipe)
    for name, off in OFF.items():
        assert difference(whole, drawn(pipe, **off)) > 1e-3, name
    for name in list(pipe.controlnets):
        pipe.unload_controlnet(name)
    pipe.unload_t2i_adapter(*pipe.t2i_adapters)
    pipe.unload_ip_adapter()
    bare = Pipeline.from_pretrained(folder / "base", device="cpu")
    assert torch.equal(pipe(**SETTINGS).images, bare(**SETTINGS).images)
    assert pipe.unet.state_dict().keys() == bare.unet.state_dict().keys()


def test_eight_bits(pipe: Pipeline) -> None:
    """The U-Net in 8 bits changes little, beside what steers it; taken off, it is exact again."""
    exact = drawn(pipe)
    little = difference(exact, drawn(pipe.optimize(int8=True)))
    assert 0 < little < 0.1 * exact.abs().max()
    pipe.optimize(False)
    assert torch.equal(drawn(pipe), exact)


@pytest.mark.parametrize("shared", SHARED)
def test_beside_shared_attention(pipe: Pipeline, shared: str) -> None:
    """Each still counts where rows read each other, and the model stays as it was."""
    before = drawn(pipe)
    whole = drawn(pipe, **SHARED[shared])
    assert difference(whole, before) > 1e-3
    for name, off in OFF.items():
        assert difference(whole, drawn(pipe, **SHARED[shared], **off)) > 1e-3, name
    assert torch.equal(drawn(pipe), before)


def test_a_reference_is_not_steered(pipe: Pipeline) -> None:
    """With all at scale 0, it is the picture that a bare model draws beside the reference."""
    off: dict[str, Any] = {}
    for each in OFF.values():
        off |= each
    off["controlnet_conditioning_scale"] = 0.0
    steered = drawn(pipe, **SHARED["a reference"], **off)
    for name in list(pipe.controlnets):
        pipe.unload_controlnet(name)
    pipe.unload_t2i_adapter(*pipe.t2i_adapters)
    pipe.unload_ip_adapter()
    assert torch.equal(pipe(**SETTINGS, **SHARED["a reference"]).images, steered)
