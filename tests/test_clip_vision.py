"""CLIP's vision encoder: the same states and pixels as transformers' on the same weights."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldm.clip_vision import CLIPVisionEncoder
from ldm.config import CLIPVisionConfig
from ldm.errors import ArgumentError, CheckpointError
from ldm.images import load_image
from ldm.images.clip_pixels import clip_pixels
from tests.helpers.networks import difference, norm_eps, ours_like, randomize

transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "projection_dim": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "quick_gelu": {},
    "gelu": {"hidden_act": "gelu"},
    "large layer_norm_eps": {"layer_norm_eps": 0.1},
    "patches do not fill the picture": {"image_size": 30, "patch_size": 7},
    "one patch": {"image_size": 8},
    "one layer": {"num_hidden_layers": 1},
}
# The encoders of published IP-Adapters, with their numbers of parameters.
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "ViT-L/14": (
        {
            "hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 768,
            "num_hidden_layers": 24, "num_attention_heads": 16,
        },
        303_966_208,
    ),
    "ViT-H/14": (
        {
            "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1024,
            "num_hidden_layers": 32, "num_attention_heads": 16, "hidden_act": "gelu",
        },
        632_076_800,
    ),
    "ViT-bigG/14": (
        {
            "hidden_size": 1664, "intermediate_size": 8192, "projection_dim": 1280,
            "num_hidden_layers": 48, "num_attention_heads": 16, "hidden_act": "gelu",
        },
        1_844_907_264,
    ),
}  # fmt: skip


def pair(values: dict[str, Any]) -> tuple[nn.Module, CLIPVisionEncoder]:
    """(theirs, ours) on the same random weights."""
    config = transformers.CLIPVisionConfig(**values)
    theirs = randomize(transformers.CLIPVisionModelWithProjection(config))
    stored = theirs.config.to_dict() | {"architectures": ["CLIPVisionModelWithProjection"]}
    return theirs, ours_like(theirs, CLIPVisionEncoder, CLIPVisionConfig.from_dict(stored))


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_as_transformers(variant: str) -> None:
    theirs, ours = pair(TINY | VARIANTS[variant])
    assert list(norm_eps(ours).values()) == list(norm_eps(theirs).values())
    size = ours.config.image_size
    pictures = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    want = theirs(pictures, output_hidden_states=True)
    embeds, states = ours(pictures)
    assert difference(embeds, want.image_embeds) <= 1e-5
    assert difference(states, want.hidden_states[-2]) <= 1e-5
    assert states.shape == (3, ours.config.tokens, 24)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_encoders_have_the_same_tensors(name: str) -> None:
    values, count = PUBLISHED[name]
    values = values | {"patch_size": 14}
    with torch.device("meta"):
        ours = CLIPVisionEncoder(CLIPVisionConfig.from_dict(values))
        theirs = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**values))
    shapes = {key: value.shape for key, value in ours.state_dict().items()}
    assert shapes == {key: value.shape for key, value in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == count


def test_configuration_goes_to_transformers_and_back() -> None:
    ours = CLIPVisionConfig.from_dict(TINY)
    theirs = transformers.CLIPVisionConfig.from_dict(ours.to_dict())
    assert {key: getattr(theirs, key) for key in TINY} == TINY
    assert CLIPVisionConfig.from_dict(theirs.to_dict()) == ours
    whole = transformers.CLIPConfig(vision_config=TINY, projection_dim=10).to_dict()
    assert CLIPVisionConfig.from_dict(whole) == ours


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"num_attention_heads": 5}, "24 is not divisible by num_attention_heads 5"),
        ({"patch_size": 33}, "patch_size is 33 and image_size 32"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"num_channels": 4}, "num_channels is 4; expected 3"),
        ({"image_size": [32, 48]}, "image_size is"),
    ],
)
def test_configurations_that_do_not_work(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        CLIPVisionConfig.from_dict(TINY | values)


def test_a_picture_of_another_size() -> None:
    ours = CLIPVisionEncoder(CLIPVisionConfig.from_dict(TINY))
    with pytest.raises(ArgumentError, match=r"\(1, 3, 32, 40\); expected \(B, 3, 32, 32\)"):
        ours(torch.zeros(1, 3, 32, 40))


def test_gradients_reach_every_parameter_and_the_picture() -> None:
    """The last layer's patches are read by nothing."""
    ours = CLIPVisionEncoder(CLIPVisionConfig.from_dict(TINY))
    pictures = torch.randn(2, 3, 32, 32, requires_grad=True)
    embeds, states = ours(pictures)
    (embeds.sum() + states.square().sum()).backward()
    assert pictures.grad is not None
    assert all(parameter.grad is not None for parameter in ours.parameters())


@pytest.mark.parity
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [(224, 224), (301, 97), (97, 301), (33, 500), (1, 1), (225, 224)])
def test_pixels_are_as_transformers_makes_them(mode: str, size: tuple[int, int]) -> None:
    """Of Pillow's backend, which IP-Adapters were trained with."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 4), np.uint8), "RGBA")
    if mode != "RGBA":
        picture = picture.convert("RGB").convert(mode)
    processor = transformers.CLIPImageProcessorPil(size=224, crop_size=224)
    want = torch.as_tensor(processor(picture, return_tensors="pt").pixel_values)
    assert (clip_pixels([load_image(picture)], 224) - want).abs().max() <= 1e-6
