"""Heat maps are the mean of softmax(QKᵀ/√d), by the formula; watching changes nothing."""

import math
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm import Pipeline
from ldm.denoiser import Denoiser
from ldm.errors import ArgumentError
from ldm.guidance import Guidance
from ldm.hires import hires_fix
from ldm.layers import Attention, SpatialTransformer
from ldm.techniques.attention_maps import AttentionMaps, probabilities, watches
from ldm.text.conditioning import encode_prompts
from ldm.text.tokenizer import CLIPTokenizer
from tests.helpers.networks import randomize


@pytest.fixture(scope="module")
def pipe(folder) -> Pipeline:
    return Pipeline.from_pretrained(folder)


LONG = "a cat on the mat " * 16  # two chunks


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
    with pipe.explain() as attention:
        pipe(["a red car", "a dog"], **arguments)
    want = torch.stack(seen).mean(0)
    assert len(seen) == 2 * len(layers)
    for picture, text in enumerate(("a red car", "a dog")):
        maps = attention.maps(picture=picture)
        assert attention.texts(picture) == [text]
        assert maps.shape == (77, 8, 8)
        assert (maps - want[picture]).abs().max() < 1e-5
        assert (maps.sum(dim=0) - 1).abs().max() < 1e-5
    assert (want[0] - want[1]).abs().max() > 1e-3  # the pictures' own


def watched(pipe: Pipeline, prompt: str | list[str], **arguments: Any) -> AttentionMaps:
    """Maps of a run, whose pictures are those of a run that nobody watches."""
    options = {"seed": 1, "num_inference_steps": 4, "output_type": "latent"} | arguments
    before = pipe(prompt, **options).images
    with pipe.explain() as attention:
        assert torch.equal(pipe(prompt, **options).images, before)
    return attention


def test_streams_that_began_before(pipe: Pipeline) -> None:
    """They are watched from their first step on, and where they were made if nobody watches."""
    options = {"seed": 1, "num_inference_steps": 2, "output_type": "latent"}
    before, want = pipe.stream("a car", **options), watched(pipe, "a car", num_inference_steps=2)
    with pipe.explain() as first:
        deque(before, maxlen=0)
        inside = pipe.stream("a car", **options)
    assert torch.equal(first.maps(), want.maps())
    with pipe.explain() as second:
        other = pipe.stream("a car", **options)
    deque(other, maxlen=0)
    deque(inside, maxlen=0)
    assert torch.equal(second.maps(), want.maps())


def seen(pipe: Pipeline, run: str, **options: Any) -> list[Tensor]:
    """What the U-Net is shown at each of four steps."""
    first = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return [first, *(p.latents for p in pipe.stream(run, seed=1, num_inference_steps=4, **options))]


def steps_of(pipe: Pipeline, text: str, steps: list[int], x: list[Tensor]) -> Tensor:
    """The mean maps of a plain text that is asked about x at these steps."""
    (told,) = encode_prompts(pipe.text_models, [text], [""], 1)
    maps = []
    for step in steps:
        with pipe.explain() as attention, torch.no_grad():
            (watch,) = watches(pipe.unet, pipe.unet)
            denoise = Denoiser(
                watch.unet, pipe.scheduler, [told], Guidance(), listener=watch.set_rows
            )
            denoise(x[step - 1], pipe.schedule(4)[0][step - 1][0])
        maps.append(attention.maps())
    return torch.stack(maps).mean(0)


def close(got: Tensor, want: Tensor) -> bool:
    return got.shape == want.shape and bool((got - want).abs().max() < 1e-5)


def test_texts_that_and_joins(pipe: Pipeline) -> None:
    """Each has maps of its own, whatever the guidance; the negative prompt has none."""
    run = "a red cat :1.5 AND dog"
    for options in (
        {"guidance_scale": 1.0},  # asks about nothing, too
        {"guidance_scale": 5.0, "guidance_interval": (0.5, 5.0), "negative_prompt": "fish"},
    ):
        attention = watched(pipe, run, **options)
        cat, dog = attention.texts()
        assert (cat, dog) == ("a red cat", "dog")
        x = seen(pipe, run, **options)
        for text in cat, dog:
            assert close(attention.maps(text), steps_of(pipe, text, [1, 2, 3, 4], x))
        assert not close(attention.maps(cat), attention.maps(dog))
        assert [word for word, _ in attention.words()] == ["a", "red", "cat", "dog"]
        assert torch.equal(attention.words()[3][1], attention.words(dog)[0][1])


@pytest.mark.parametrize("interval", [(0.0, math.inf), (0.5, 5.0)])
def test_texts_of_a_schedule(pipe: Pipeline, interval: tuple[float, float]) -> None:
    """Each over the steps in which it was heard; in those without guidance, too."""
    run, options = "a [cat:dog:1]", {"guidance_interval": interval}
    attention = watched(pipe, run, **options)
    assert attention.texts() == ["a cat", "a dog"]
    x = seen(pipe, run, **options)
    assert close(attention.maps("a cat"), steps_of(pipe, "a cat", [1], x))
    assert close(attention.maps("a dog"), steps_of(pipe, "a dog", [2, 3, 4], x))
    assert not close(attention.maps("a dog"), steps_of(pipe, "a dog", [1, 2, 3], x))


def test_prompts_of_many_lengths(pipe: Pipeline) -> None:
    """Each picture's maps are those of the picture alone."""
    prompts = ["a dog", LONG, "a [cat|fish]", "b AND c"]
    attention = watched(pipe, prompts, num_inference_steps=2)
    for index, prompt in enumerate(prompts):
        alone = watched(pipe, prompt, seed=1 + index, num_inference_steps=2)
        assert attention.texts(index) == alone.texts()
        assert len(alone.texts()) == 1 + (index > 1)
        for text in alone.texts():
            assert close(attention.maps(text, index), alone.maps(text))
    assert attention.maps(picture=1).shape == (154, 8, 8)
    assert len(attention.words(picture=1)) == 5 * 16
    with pipe.explain() as both:  # of one text, in two lengths
        for negative in ("", LONG, ""):
            pipe("a dog", negative_prompt=negative, num_inference_steps=1)
    assert both.maps().shape == (154, 8, 8)
    assert (both.maps().sum(dim=0) - 1).abs().max() < 1e-5


def test_two_passes(pipe: Pipeline) -> None:
    with pipe.explain() as attention:
        *_, _ = hires_fix(pipe, "a dog", hires_scale=1.5, num_inference_steps=2)
    assert attention.maps().shape == (77, 12, 12)
    assert (attention.maps().sum(dim=0) - 1).abs().max() < 1e-5


def test_a_model_that_is_told_the_scale(models: Any) -> None:
    """LCM's are asked about the text alone; with AND, about nothing, too."""
    ours, _ = models("lcm")
    attention = watched(ours, ["a dog", LONG], negative_prompt="cat", num_inference_steps=1)
    alone = watched(ours, "a dog", guidance_scale=8.5, num_inference_steps=1)
    assert attention.texts() == ["a dog"]
    assert close(attention.maps(picture=0), alone.maps())
    joined = watched(ours, "dog AND cat", num_inference_steps=1)
    assert [word for word, _ in joined.words()] == ["dog", "cat"]
    assert not close(joined.maps(joined.texts()[0]), joined.maps(joined.texts()[1]))


def test_watching_changes_nothing(pipe: Pipeline) -> None:
    arguments = {"seed": 3, "num_inference_steps": 2, "output_type": "pt"}
    before = pipe("a red car", **arguments).images
    with pipe.explain() as attention:
        during = pipe("a red car", **arguments).images
    after = pipe("a red car", **arguments).images
    assert torch.equal(before, during) and torch.equal(before, after)
    hooks = [hook for m in pipe.unet.modules() for hook in m._forward_pre_hooks.values()]
    assert hooks == []
    maps = attention.maps()
    pipe("a dog", **arguments)
    assert attention.texts() == ["a red car"]
    assert torch.equal(attention.maps(), maps)


def test_hooks_are_off_after_an_error(pipe: Pipeline) -> None:
    with pytest.raises(ZeroDivisionError), pipe.explain():
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks for m in pipe.unet.modules())


def test_without_guidance_and_not_square(pipe: Pipeline) -> None:
    with pipe.explain() as attention:
        pipe("a", seed=1, num_inference_steps=1, guidance_scale=1, height=40, width=72)
    assert attention.maps().shape == (77, 5, 9)
    assert (attention.maps().sum(dim=0) - 1).abs().max() < 1e-5


def test_what_was_not_drawn(pipe: Pipeline) -> None:
    with pipe.explain() as attention:
        pipe(["a", "b AND c"], num_inference_steps=1)
    with pytest.raises(ArgumentError, match="picture is 2; 2 were drawn: they count from 0"):
        attention.words(picture=2)
    with pytest.raises(ArgumentError, match="text is 'b'; expected one that picture 0 has: 'a'"):
        attention.maps("b")
    with pytest.raises(ArgumentError, match=r"text is None; expected .* picture 1 has: 'b', 'c'"):
        attention.maps(picture=1)


def test_nothing_drawn(pipe: Pipeline) -> None:
    with pipe.explain() as attention:
        pass
    with pytest.raises(ArgumentError, match="no picture was drawn within explain"):
        attention.words("a")


def words(tokenizer: CLIPTokenizer, prompt: str) -> list[tuple[str, list[int]]]:
    """Each word, and which tokens it was made of: a map's pixel i is lit by token i alone."""
    attention = AttentionMaps(tokenizer)
    sums = {(0, prompt): (torch.eye(154).view(154, 154, 1), 1)}
    attention.watches.append(SimpleNamespace(sums=sums, size=(154, 1)))
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
    attention = AttentionMaps(pipe.tokenizer)
    text = "pneumonoultra, x"
    sums = {(0, text): (2 * torch.arange(77.0).view(77, 1, 1), 2)}
    attention.watches.append(SimpleNamespace(sums=sums, size=(1, 1)))
    tokens = range(1, 1 + len(pipe.tokenizer.encode("pneumonoultra")))
    (_, long), (_, x) = attention.words(text)
    assert len(tokens) > 2
    assert (long.item(), x.item()) == (sum(tokens) / len(tokens), len(tokens) + 2)
    assert np.isclose(attention.maps().sum(), sum(range(77)))
