"""Heat maps are the mean of softmax(QKᵀ/√d), by the formula; watching changes nothing."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randomize
from torch import Tensor

from ldm import Pipeline
from ldm.errors import ArgumentError
from ldm.explain import AttentionMaps, probabilities
from ldm.layers import Attention, SpatialTransformer
from ldm.tokenizer import CLIPTokenizer


@pytest.fixture(scope="module")
def pipe(folder) -> Pipeline:
    return Pipeline.from_pretrained(folder)


def by_formula(layer: Attention, x: Tensor, context: Tensor) -> Tensor:
    """One picture, head, pixel and token at a time, in double precision."""
    q, k = (x @ layer.to_q.weight.T).double(), (context @ layer.to_k.weight.T).double()
    width = q.shape[-1] // layer.heads
    out = torch.zeros(len(x), layer.heads, x.shape[1], context.shape[1], dtype=torch.float64)
    for picture in range(len(x)):
        for head in range(layer.heads):
            own = slice(head * width, (head + 1) * width)
            for pixel in range(x.shape[1]):
                scores = [
                    math.exp(float(q[picture, pixel, own] @ token[own]) / math.sqrt(width))
                    for token in k[picture]
                ]
                out[picture, head, pixel] = torch.tensor(scores) / sum(scores)
    return out


def test_probabilities() -> None:
    layer = randomize(Attention(12, heads=3, context_dim=5))
    x, context = torch.randn(2, 4, 12) * 3, torch.randn(2, 6, 5) * 3
    got, want = probabilities(layer, x, context), by_formula(layer, x, context)
    assert got.shape == (2, 3, 4, 6)
    assert want.std() > 0.05
    assert (got - want).abs().max() < 1e-5
    # They are what the layer itself weighs the values with.
    values = (context @ layer.to_v.weight.T).unflatten(-1, (3, 4)).transpose(1, 2)
    mixed = (got @ values).transpose(1, 2).flatten(2)
    assert (layer.to_out[0](mixed) - layer(x, context)).abs().max() < 1e-5


def test_maps_are_the_mean_over_steps_layers_and_heads(pipe: Pipeline) -> None:
    """Against maps taken by wrapping the layers' own forward, of the half with the text."""
    seen = []
    layers = [
        block.attn2
        for module in pipe.unet.modules()
        if isinstance(module, SpatialTransformer)
        for block in module.transformer_blocks
    ]

    def look(layer, args):
        x, context = args
        side = math.isqrt(x.shape[1])
        assert len(x) == 4
        mean = by_formula(layer, x[2:], context[2:]).mean(1).float()
        maps = mean.transpose(1, 2).unflatten(-1, (side, side))
        seen.append(F.interpolate(maps, size=(8, 8), mode="bilinear", align_corners=False))

    arguments = {"seed": 1, "num_inference_steps": 2}
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    pipe(["a red car", "a dog"], **arguments)
    for handle in handles:
        handle.remove()
    with pipe.explain(pictures=2) as attention:
        pipe(["a red car", "a dog"], **arguments)
    want = torch.stack(seen).mean(0)
    assert len(seen) == 2 * len(layers)
    assert attention.maps.shape == (2, 77, 8, 8)
    assert (attention.maps - want).abs().max() < 1e-5
    assert (want[0] - want[1]).abs().max() > 1e-3  # the pictures' own
    assert (attention.maps.sum(dim=1) - 1).abs().max() < 1e-5


def test_watching_changes_nothing(pipe: Pipeline) -> None:
    arguments = {"seed": 3, "num_inference_steps": 2, "output_type": "pt"}
    before = pipe("a red car", **arguments).images
    with pipe.explain() as attention:
        during = pipe("a red car", **arguments).images
    after = pipe("a red car", **arguments).images
    assert torch.equal(before, during) and torch.equal(before, after)
    hooks = [hook for m in pipe.unet.modules() for hook in m._forward_pre_hooks.values()]
    assert hooks == []
    maps = attention.maps
    pipe("a dog", **arguments)
    assert torch.equal(attention.maps, maps)


def test_hooks_are_off_after_an_error(pipe: Pipeline) -> None:
    with pytest.raises(ZeroDivisionError), pipe.explain():
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks for m in pipe.unet.modules())


def test_without_guidance_and_not_square(pipe: Pipeline) -> None:
    with pipe.explain() as attention:
        pipe("a", seed=1, num_inference_steps=1, guidance_scale=1, height=40, width=72)
    assert attention.maps.shape == (1, 77, 5, 9)
    assert (attention.maps.sum(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(("count", "drawn"), [(3, 1), (5, 2)])
def test_another_number_of_pictures(pipe: Pipeline, count: int, drawn: int) -> None:
    message = f"explain\\(\\) was told of {count} pictures, but {2 * drawn} are drawn"
    with pytest.raises(ArgumentError, match=message), pipe.explain(pictures=count):
        pipe(["a"] * drawn, num_inference_steps=1)


def test_nothing_drawn(pipe: Pipeline) -> None:
    with pipe.explain() as attention:
        pass
    with pytest.raises(ArgumentError, match="no picture was drawn within explain"):
        attention.words("a")


def words(tokenizer: CLIPTokenizer, prompt: str) -> list[tuple[str, list[int]]]:
    """Each word, and which tokens it was made of: a map's pixel i is lit by token i alone."""
    attention = AttentionMaps(tokenizer, 1)
    attention._sum, attention._count = torch.eye(154).view(1, 154, 154, 1), 1
    return [(word, heat[:, 0].nonzero()[:, 0].tolist()) for word, heat in attention.words(prompt)]


def test_words_and_their_tokens(pipe: Pipeline) -> None:
    tokenizer = pipe.tokenizer
    assert words(tokenizer, "a red car") == [("a", [1]), ("red", [2]), ("car", [3])]
    assert words(tokenizer, "  Red,  (car:1.3) . red\n") == [
        ("red", [1]),
        ("car", [3]),
        ("red", [5]),
    ]
    ((long, tokens),) = words(tokenizer, "pneumonoultramicroscopic")
    assert long == "pneumonoultramicroscopic"
    assert tokens == list(range(1, 1 + len(tokenizer.encode(long)))) and len(tokens) > 2
    assert words(tokenizer, "") == []
    assert len(words(tokenizer, "a " * 80)) == 80  # of two chunks
    (first, _), (second, tokens) = words(tokenizer, "été, 🚗")
    assert (first, second) == ("été", "🚗")
    new = tokenizer.with_words({"<toy>": 3})
    assert words(new, "a <toy> <toy> car") == [
        ("a", [1]), ("<toy>", [2, 3, 4]), ("<toy>", [5, 6, 7]), ("car", [8]),
    ]  # fmt: skip


def test_the_mean_over_a_words_tokens(pipe: Pipeline) -> None:
    attention = AttentionMaps(pipe.tokenizer, 1)
    attention._sum = 2 * torch.arange(77.0).view(1, 77, 1, 1)
    attention._count = 2
    tokens = range(1, 1 + len(pipe.tokenizer.encode("pneumonoultra")))
    (_, long), (_, x) = attention.words("pneumonoultra, x")
    assert len(tokens) > 2
    assert (long.item(), x.item()) == (sum(tokens) / len(tokens), len(tokens) + 2)
    assert np.isclose(attention.maps.sum(), sum(range(77)))
