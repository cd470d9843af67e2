"""Models of classes: what a prompt means, and guidance away from "no class"."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.classes.labels import Classes
from ldm.config import SchedulerConfig, UNetConfig
from ldm.errors import ArgumentError, CheckpointError
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.unet import UNet
from tests.helpers.networks import difference, randomize
from tests.helpers.pictures import generator, generators, quiet

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LABELS = {str(number): name for number, name in enumerate(DIGITS)}
IMAGENET = {"0": "tench, Tinca tinca", "1": "crane", "2": "Crane", "3": "crane, a machine"}
CONFIG = UNetConfig(
    cross_attention_dim=None,
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
)


def pipeline(
    embeddings: int | None, labels: Any = LABELS, classifier: Any = None, **changes: Any
) -> Pipeline:
    unet = randomize(UNet(replace(CONFIG, num_class_embeds=embeddings, **changes)), 5)
    variance = "learned_range" if unet.config.out_channels == 2 else "fixed_small"
    scheduler = DDPMScheduler(SchedulerConfig(variance_type=variance))
    return Pipeline(None, None, None, unet, scheduler, id2label=labels, classifier=classifier)


@pytest.fixture(scope="module")
def guided() -> Pipeline:
    return pipeline(11)


def classes(labels: dict[str, str], embedded: int | None = -1) -> Classes:
    embedded = len(labels) if embedded == -1 else embedded
    return Classes.of(replace(CONFIG, num_class_embeds=embedded), None, labels)


@pytest.mark.parametrize(
    ("text", "number"),
    [("seven", 7), (" Seven ", 7), ("7", 7), ("0", 0), ("", None), ("  ", None), ("NINE", 9)],
)
def test_names_and_numbers(text: str, number: int | None) -> None:
    assert classes(LABELS).read(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("tench", 0), ("tinca tinca", 0), ("tench, Tinca tinca", 0), ("Crane", 2), ("a machine", 3)],
)
def test_a_class_of_many_names(text: str, number: int) -> None:
    """As in diffusers' DiTPipeline; the very case goes first."""
    assert classes(IMAGENET).read(text) == number


def test_a_name_goes_before_a_number() -> None:
    assert classes({"0": "3", "1": "7"}).read("7") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sven", "prompt is 'sven', which is no class of this model; did you mean 'seven'"),
        ("(seven:1.2)", "no class of this model; did you mean 'seven'"),
        ("10", "give a number from 0 to 9, or a name: zero, one, two, three, four, five, six"),
        ("seven, eight", "no class of this model"),
        ("²", "no class of this model"),
    ],
)
def test_unknown_classes(text: str, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        classes(LABELS).read(text)
    assert message in str(caught.value)


def test_a_name_of_several() -> None:
    with pytest.raises(ArgumentError, match="'crane' is the name of the classes 1 and 3; give the"):
        classes(IMAGENET).read("crane")


def test_classes_without_names() -> None:
    known = Classes.of(replace(CONFIG, num_class_embeds=5), None, None)
    assert (known.count, known.no_class, known.read("4")) == (5, None, 4)
    with pytest.raises(ArgumentError, match=r"give a number from 0 to 4$"):
        known.read("5")


@pytest.mark.parametrize(
    ("labels", "embedded", "message"),
    [
        ({"0": "a", "1": "b"}, None, "the U-Net is told none and there is no classifier"),
        ({"0": "a", "2": "b"}, 2, "id2label in model_index.json is"),
        ({"x": "a"}, 1, "id2label in model_index.json is"),
        ({"0": "a", "1": "b"}, 4, "4 num_class_embeds for 2 classes; expected 2, or 3"),
        ({"0": "a", "1": "b"}, 1, "1 num_class_embeds for 2 classes; expected 2, or 3"),
    ],
)
def test_classes_that_do_not_fit(labels: Any, embedded: int | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        classes(labels, embedded)


# In a pipeline


def loop(pipe: Pipeline, label: int, negative: int | None, scale: float, n: int, seed: int) -> Any:
    """The run of diffusers' scheduler with the U-Net asked twice."""
    diffusers = pytest.importorskip("diffusers")
    kind = pipe.scheduler.config.variance_type
    scheduler, noise = diffusers.DDPMScheduler(variance_type=kind), generator(seed)
    scheduler.set_timesteps(n)
    x = torch.randn((1, 1, 8, 8), generator=noise)
    for t in scheduler.timesteps:
        said = pipe.unet(x, t[None], class_labels=torch.tensor([label]))
        if negative is not None:
            without = pipe.unet(x, t[None], class_labels=torch.tensor([negative]))
            eps = without[:, :1] + scale * (said[:, :1] - without[:, :1])
            said = torch.cat([eps, said[:, 1:]], dim=1)  # the variance is the class's, as in DiT
        x = scheduler.step(said, t, x, generator=noise).prev_sample
    return x.clamp(-1, 1) / 2 + 0.5


def pt(pipe: Pipeline, prompt: Any = "", **arguments: Any) -> Tensor:
    return pipe(prompt, output_type="pt", num_inference_steps=5, **arguments).images


@pytest.mark.parity
@pytest.mark.parametrize("channels", [1, 2])
def test_guidance_on_classes(channels: int) -> None:
    pipe = pipeline(11, out_channels=channels)
    assert pipe.defaults.guidance_scale == 4.0
    plain = loop(pipe, 7, None, 1.0, 5, 3)
    assert difference(pt(pipe, "seven", seed=3, guidance_scale=1.0), plain) <= 1e-4
    free = loop(pipe, 7, 10, 4.0, 5, 3)
    assert difference(pt(pipe, "seven", seed=3), free) <= 1e-4
    away = loop(pipe, 7, 8, 3.0, 5, 3)
    got = pt(pipe, "7", negative_prompt="eight", guidance_scale=3.0, seed=3)
    assert difference(got, away) <= 1e-4
    assert min(difference(free, plain), difference(free, away)) > 1e-2


def test_no_class_is_the_last(guided: Pipeline) -> None:
    want = loop(guided, 10, None, 1.0, 5, 3)
    assert difference(pt(guided, seed=3, guidance_scale=1.0), want) <= 1e-4
    assert difference(pt(guided, seed=3), want) <= 1e-4  # away from itself is nowhere


def test_batches_of_classes(guided: Pipeline) -> None:
    together = pt(guided, ["seven", "", "2"], num_images_per_prompt=2, seed=3)
    singles = [pt(guided, text, seed=3 + i) for i, text in enumerate(["7", "7", "", "", "2", "2"])]
    assert difference(together, torch.cat(singles)) <= 1e-5
    both = pt(guided, ["7", "2"], negative_prompt=["", "7"], generator=generators(3, 2))
    assert difference(both[:1], singles[0]) <= 1e-5


def test_without_no_class() -> None:
    """Nothing to guide away from: the default is 1, and more is refused; but not a class."""
    pipe = pipeline(10)
    assert pipe.defaults.guidance_scale == 1.0
    want = loop(pipe, 7, None, 1.0, 5, 3)
    assert difference(pt(pipe, "seven", seed=3), want) <= 1e-4
    away = loop(pipe, 7, 8, 3.0, 5, 3)
    got = pt(pipe, "seven", negative_prompt="eight", guidance_scale=3.0, seed=3)
    assert difference(got, away) <= 1e-4
    with pytest.raises(
        ArgumentError, match=r"guidance_scale .* or give a class as negative_prompt"
    ):
        pipe.stream("seven", guidance_scale=3.0)
    with pytest.raises(ArgumentError, match="prompt is empty, but this model draws one of its cla"):
        pipe.stream("")
    with pytest.raises(ArgumentError, match="negative_prompt is 'sven', which is no class"):
        pipe.stream("seven", negative_prompt="sven")


@pytest.mark.parity
def test_saved_and_loaded(guided: Pipeline, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    guided.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["id2label"] == LABELS
    again = Pipeline.from_pretrained(tmp_path)
    assert again.defaults == guided.defaults
    assert torch.equal(pt(again, "seven", seed=3), pt(guided, "seven", seed=3))
    theirs = quiet(diffusers.DDPMPipeline.from_pretrained(tmp_path))
    x = torch.randn((2, 1, 8, 8), generator=generator(0))
    told = torch.tensor([7, 10])
    want = theirs.unet(x, 500, class_labels=told).sample
    assert difference(again.unet(x, torch.tensor([500.0] * 2), class_labels=told), want) <= 1e-5


@pytest.mark.parametrize("kind", ["timestep", "identity"])
def test_other_embeddings_are_refused(kind: str) -> None:
    with pytest.raises(CheckpointError, match=f"class_embed_type of the U-Net is '{kind}'"):
        pipeline(None, class_embed_type=kind)


@pytest.mark.parametrize("change", [lambda p: p(["a", 1]), lambda p: p(negative_prompt=["", ""])])
def test_lists_that_do_not_fit(guided: Pipeline, change: Callable[[Pipeline], Any]) -> None:
    with pytest.raises(ArgumentError):
        change(guided)
