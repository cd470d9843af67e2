"""The text encoder: the same states as transformers' on the same random weights."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.clip import CLIPTextEncoder
from ldm.config import CLIPTextConfig
from ldm.errors import ArgumentError
from tests.helpers.networks import difference, norm_eps, ours_like, randomize

transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 40,
    "projection_dim": 10,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "bos_token_id": 98,
    "eos_token_id": 99,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "quick_gelu": {"hidden_act": "quick_gelu"},
    "gelu": {"hidden_act": "gelu"},
    "large layer_norm_eps": {"layer_norm_eps": 0.1},
    "20 positions": {"max_position_embeddings": 20},
    "legacy eos_token_id": {"eos_token_id": 2},
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "eos_token_id": 2,  # as in the folders of Stable Diffusion 1.x
}


def pair(values: dict[str, Any], name: str = "CLIPTextModel") -> tuple[nn.Module, CLIPTextEncoder]:
    """(theirs, ours) on the same random weights; `name` is the class in transformers."""
    theirs = randomize(getattr(transformers, name)(transformers.CLIPTextConfig(**values)))
    config = theirs.config.to_dict() | {"architectures": [name]}  # as transformers saves it
    return theirs, ours_like(theirs, CLIPTextEncoder, CLIPTextConfig.from_dict(config))


def some_ids(config: CLIPTextConfig, length: int) -> Tensor:
    """Three texts of different lengths, each with its end and padded with ends, as CLIP does."""
    ids = torch.randint(3, 98, (3, length), generator=torch.Generator().manual_seed(length))
    ids[:, 0] = config.vocab_size - 2
    for row, end in enumerate((1, length // 2, length - 1)):
        ids[row, end:] = config.vocab_size - 1
    return ids


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_as_transformers(variant: str) -> None:
    theirs, ours = pair(TINY | VARIANTS[variant])
    assert list(norm_eps(ours).values()) == list(norm_eps(theirs).values())
    for length in {ours.config.max_position_embeddings, 9, 2}:
        ids = some_ids(ours.config, length)
        want = theirs(ids)
        context, pooled = ours(ids)
        assert difference(context, want.last_hidden_state) <= 1e-5
        assert difference(pooled, want.pooler_output) <= 1e-5
        assert difference(pooled, context[range(3), [1, length // 2, length - 1]]) == 0


@pytest.mark.parity
@pytest.mark.parametrize("variant", VARIANTS)
def test_with_projection(variant: str) -> None:
    theirs, ours = pair(TINY | VARIANTS[variant], "CLIPTextModelWithProjection")
    ids = some_ids(ours.config, 20)
    want = theirs(ids)
    context, pooled = ours(ids)
    assert difference(context, want.last_hidden_state) <= 1e-5
    assert difference(pooled, want.text_embeds) <= 1e-5
    assert pooled.shape == (3, 10)


@pytest.mark.parity
def test_skip_takes_an_earlier_layer_and_the_final_norm() -> None:
    theirs, ours = pair(TINY)
    ids = some_ids(ours.config, 77)
    states = theirs(ids, output_hidden_states=True).hidden_states
    norm = getattr(theirs, "text_model", theirs).final_layer_norm
    seen = []
    for skip in range(4):
        context, pooled = ours(ids, skip=skip)
        assert difference(context, norm(states[-1 - skip])) <= 1e-5
        assert difference(pooled, ours(ids).pooled) == 0  # always of the last layer
        seen.append(context)
    assert all(difference(a, b) > 1e-2 for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize("skip", [4, 5, -1])
def test_skip_without_a_layer_left(skip: int) -> None:
    _, ours = pair(TINY)
    with pytest.raises(ArgumentError, match=f"leaves out {skip} layers of 4"):
        ours(some_ids(ours.config, 5), skip=skip)


def test_a_token_sees_only_those_before() -> None:
    _, ours = pair(TINY)
    ids = some_ids(ours.config, 20)
    changed = ids.clone()
    changed[:, 12:] = 5
    before, after = ours(ids).context, ours(changed).context
    assert torch.equal(before[:, :12], after[:, :12])
    assert difference(before[:, 12:], after[:, 12:]) > 1e-2


@pytest.mark.parity
def test_the_end_is_the_first_end_token() -> None:
    """Also where a text without an end comes in: transformers takes position 0 then."""
    theirs, ours = pair(TINY)
    ids = torch.tensor([[98, 99, 7, 99, 99], [98, 7, 8, 9, 10]])
    want = theirs(ids).pooler_output
    assert difference(ours(ids).pooled, want) <= 1e-5
    assert difference(want, ours(ids).context[range(2), [1, 0]]) <= 1e-5


@pytest.mark.parity
def test_full_size() -> None:
    """CLIP ViT-L/14's text encoder, 123 million parameters."""
    theirs, ours = pair(CLIP_L)
    assert sum(p.numel() for p in ours.parameters()) == 123_060_480
    names = {k.removeprefix("text_model."): v.shape for k, v in ours.state_dict().items()}
    assert names == {k.removeprefix("text_model."): v.shape for k, v in theirs.state_dict().items()}
    ids = torch.full((2, 77), 49407)
    ids[:, :6] = torch.tensor([[49406, 320, 736, 1615, 49407, 49407], [49406, 8, 9, 7, 6, 5]])
    want = theirs(ids, output_hidden_states=True)
    context, pooled = ours(ids)
    assert difference(context, want.last_hidden_state) <= 1e-4
    assert difference(pooled, want.pooler_output) <= 1e-4
    norm = getattr(theirs, "text_model", theirs).final_layer_norm
    assert difference(ours(ids, skip=1).context, norm(want.hidden_states[-2])) <= 1e-4
