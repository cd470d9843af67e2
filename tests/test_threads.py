"""Threads that draw with one model: each picture is the one drawn alone; changes wait."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.fast import graphs
from ldm.fast.optimize import Optimized
from ldm.hires import hires_fix
from ldm.pipeline import Pipeline
from tests.adapters.test_lora import FORMS
from tests.helpers.controlnets import controlnet_for
from tests.helpers.pictures import quiet

diffusers = pytest.importorskip("diffusers")

THREADS = 8
SIZES = [{}, {"height": 72}, {"height": 80}]
PATIENCE = 60  # seconds after which a thread hangs


@pytest.fixture(autouse=True, scope="module")
def many_switches() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def network(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ControlNet for the small model."""
    path = tmp_path_factory.mktemp("controlnet")
    theirs = quiet(diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))
    controlnet_for(theirs).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path, network: Path) -> Pipeline:
    """A small optimized pipeline with a ControlNet."""
    made = Pipeline.from_pretrained(folder, device="cpu", controlnet=str(network))
    return made.optimize()


@pytest.fixture(scope="module")
def lora(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file(FORMS["kohya"](Pipeline.from_pretrained(folder, device="cpu")), path)
    return path


def draw(pipe: Pipeline, **options: Any) -> Tensor:
    settings: dict[str, Any] = {"num_inference_steps": 3, "seed": 1, "output_type": "latent"}
    settings |= idle(pipe)
    return pipe("a red car", **settings | options).images


def idle(pipe: Pipeline) -> dict[str, Any]:
    """A ControlNet without a picture adds nothing."""
    return {"controlnet_conditioning_scale": 0.0} if pipe.controlnets else {}


def stream(pipe: Pipeline) -> Iterator[Any]:
    """The steps of the picture of ``draw``."""
    settings = {"num_inference_steps": 3, "seed": 1, "output_type": "latent"}
    return pipe.stream("a red car", **settings | idle(pipe))


def explained(pipe: Pipeline, **options: Any) -> Tensor:
    """The maps of a run, which nobody else's run may change."""
    with pipe.explain() as attention:
        draw(pipe, **options)
    return attention.maps()


def twice_as_large(pipe: Pipeline, **options: Any) -> Tensor:
    settings = {"num_inference_steps": 2, "hires_scale": 2.0, "output_type": "pt", "seed": 1}
    *_, last = hires_fix(pipe, "a red car", **settings | idle(pipe) | options)
    return last.output.images


HINT = Image.effect_noise((64, 64), 60).convert("RGB")
Draw = Callable[[Pipeline], Tensor]
FEATURES: dict[str, Draw] = {
    "plain": draw,
    "tiling": lambda pipe: draw(pipe, tiling=True, seed=2),
    "DeepCache": lambda pipe: draw(pipe, deep_cache=2, sampler="euler"),
    "explain": explained,
    "another size": lambda pipe: draw(pipe, width=96, seed=3),
    "image": lambda pipe: draw(pipe, image=HINT, strength=0.7, tiling=True),
    "ControlNet": lambda pipe: draw(pipe, control_image=HINT, controlnet_conditioning_scale=1.0),
    "reference": lambda pipe: draw(pipe, reference_image=HINT, num_inference_steps=4),
    "style aligned": lambda pipe: draw(pipe, style_aligned=True, num_images_per_prompt=2),
    "two passes": twice_as_large,
}


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Run each action in a thread of its own; return what they return, or raise."""
    found: list[Any] = [None] * len(actions)
    errors: list[BaseException] = []
    ready = threading.Barrier(len(actions))

    def work(i: int) -> None:
        try:
            ready.wait()
            found[i] = actions[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread waits for ever"
    for error in errors:
        raise error
    return found


@pytest.fixture(scope="module")
def alone(pipe: Pipeline) -> dict[str, Tensor]:
    """What each feature draws alone."""
    return {name: feature(pipe) for name, feature in FEATURES.items()}


@pytest.mark.parametrize(
    ("one", "other"), list(itertools.combinations_with_replacement(FEATURES, 2))
)
def test_pairs_of_features(pipe: Pipeline, alone: dict[str, Tensor], one: str, other: str) -> None:
    names = [one, other] * (THREADS // 2)
    found = at_once(*(lambda name=name: FEATURES[name](pipe) for name in names))
    for name, got in zip(names, found, strict=True):
        assert torch.equal(got, alone[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_pictures_of_an_optimized_model(dtype: str) -> None:
    """Eight threads pack the same weights, some of them in three orders for three sizes."""
    pipe = Pipeline.from_pretrained(device="cpu", dtype=dtype)
    before = weights(pipe)
    alone = copy.deepcopy(pipe).optimize()
    wants = [draw(alone, num_inference_steps=1, **size) for size in SIZES]
    for _ in range(2):
        pipe.optimize(False).optimize()
        each = range(THREADS)
        found = at_once(
            *(lambda i=i: draw(pipe, num_inference_steps=1, **SIZES[i % len(SIZES)]) for i in each)
        )
        for i in each:
            assert torch.equal(found[i], wants[i % len(SIZES)])
    pipe.optimize(False)
    assert_same(weights(pipe), before)


def weights(pipe: Pipeline) -> dict[str, Tensor]:
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text": pipe.text_encoder}
    return {
        f"{name}.{key}": value.clone()
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def changes(pipe: Pipeline, lora: Path) -> dict[str, list[Callable[[], Any]]]:
    """Ways to change a model and to change it back."""
    return {
        "LoRA": [lambda: pipe.load_lora_weights(lora), pipe.unload_lora_weights],
        "optimize": [pipe.optimize, lambda: pipe.optimize(False)],
        "dtype": [lambda: pipe.to(torch.float64), lambda: pipe.to(torch.float32)],
        "int8": [lambda: pipe.optimize(int8=True), lambda: pipe.optimize(False)],
    }


@pytest.mark.parametrize("kind", ["LoRA", "optimize", "dtype", "int8"])
def test_changes_wait(folder: Path, lora: Path, kind: str) -> None:
    """Every picture is one of the two models'; in the end the weights are those from before."""
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    if kind == "dtype":
        pytest.importorskip("torch")
    before = weights(pipe)
    there, back = changes(pipe, lora)[kind]
    wants = [draw(pipe)]
    try:
        there()
    except ArgumentError as error:
        pytest.skip(str(error))
    wants.append(draw(pipe))
    back()

    def change() -> None:
        for _ in range(3):
            there()
            back()

    found = at_once(change, *[lambda: [draw(pipe) for _ in range(3)]] * (THREADS - 1))
    for got in itertools.chain(*found[1:]):
        assert any(torch.equal(got, want) for want in wants)
    assert_same(weights(pipe), before)


def test_a_change_waits_for_the_whole_picture(pipe: Pipeline, lora: Path) -> None:
    pipe = copy.deepcopy(pipe)
    want = draw(pipe)
    steps = stream(pipe)
    next(steps)
    other = threading.Thread(target=pipe.load_lora_weights, args=(lora,), daemon=True)
    other.start()
    time.sleep(0.1)
    assert other.is_alive() and not pipe.loras.loaded
    *_, last = steps
    assert torch.equal(last.output.images, want)
    other.join(PATIENCE)
    assert pipe.loras.loaded and not torch.equal(draw(pipe), want)


def test_a_preview_in_another_thread_goes_before_a_change(pipe: Pipeline, lora: Path) -> None:
    """Else both would wait for the picture, which may wait for its preview."""
    pipe = copy.deepcopy(pipe)
    steps = stream(pipe)
    latents = next(steps).latents
    want = pipe.preview(latents)
    other = threading.Thread(target=pipe.load_lora_weights, args=(lora,), daemon=True)
    other.start()
    time.sleep(0.1)
    assert torch.equal(at_once(lambda: pipe.preview(latents))[0], want) and other.is_alive()
    steps.close()
    other.join(PATIENCE)
    assert pipe.loras.loaded


def test_a_picture_that_was_prepared_sees_a_change(pipe: Pipeline, lora: Path) -> None:
    """It is prepared again, so that all of it is of one model."""
    pipe = copy.deepcopy(pipe)
    steps = stream(pipe)
    pipe.load_lora_weights(lora)
    *_, last = steps
    assert torch.equal(last.output.images, draw(pipe))


def test_a_stream_that_is_closed_or_forgotten_blocks_nobody(pipe: Pipeline, lora: Path) -> None:
    pipe = copy.deepcopy(pipe)
    closed, forgotten, unused = (stream(pipe) for _ in range(3))
    next(closed)
    next(forgotten)
    closed.close()
    del forgotten
    at_once(lambda: pipe.load_lora_weights(lora))
    assert pipe.loras.loaded and unused


def test_a_stream_that_goes_from_thread_to_thread(pipe: Pipeline) -> None:
    want = draw(pipe)
    steps = stream(pipe)
    last = [at_once(lambda: next(steps))[0] for _ in range(3)][-1]
    assert torch.equal(last.output.images, want)
    assert next(steps, None) is None
    at_once(pipe.unload_lora_weights)


def test_a_callback_may_change_the_model(pipe: Pipeline, lora: Path) -> None:
    """Its own thread draws nothing meanwhile, so that it need not wait."""
    pipe = copy.deepcopy(pipe)
    want = draw(pipe)

    def change(pipe: Pipeline, step: int, t: float, tensors: Any) -> None:
        if step == 0:
            pipe.load_lora_weights(lora)

    assert not torch.equal(draw(pipe, callback_on_step_end=change), want)


def test_two_callbacks_that_would_wait_for_each_other(pipe: Pipeline) -> None:
    pipe = copy.deepcopy(pipe)
    both = threading.Barrier(2)

    def change(pipe: Pipeline, step: int, t: float, tensors: Any) -> None:
        if step == 0:
            both.wait()
            pipe.unload_lora_weights()

    with pytest.raises(ArgumentError, match="would wait for each other"):
        at_once(*[lambda: draw(pipe, callback_on_step_end=change)] * 2)
    at_once(pipe.unload_lora_weights)


def test_copies_and_pickles(pipe: Pipeline, lora: Path) -> None:
    """While others draw, too; a copy with a LoRA, which it can take off."""
    want, plain = copy.deepcopy(pipe), draw(pipe)
    want.load_lora_weights(lora)
    picture = draw(want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = at_once(
            *[lambda: copy.deepcopy(want), lambda: pickle.loads(pickle.dumps(want))] * 2,
            *[lambda: draw(want)] * 4,
        )
    for copied in found[:4]:
        assert torch.equal(draw(copied), picture)
        copied.unload_lora_weights()
        assert torch.equal(draw(copied), plain)
    assert torch.equal(draw(want), picture)


def test_copies_of_what_is_recorded_record_anew(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    calls: list[int] = []

    def record(call: Any, inputs: Any) -> graphs.Recording:
        calls.append(1)
        output = call(**inputs)
        return graphs.Recording(inputs, output, lambda: output.copy_(call(**inputs)))

    want = draw(pipe)
    pipe.optimized = Optimized(graphs.Graphs(pipe.unet, record), on=True)
    assert torch.equal(draw(pipe), want)
    found = at_once(*(lambda seed=seed: draw(pipe, seed=seed) for seed in range(THREADS)))
    assert len(calls) == 1
    copied = copy.deepcopy(pipe)
    assert copied.optimized.graphs.unet is copied.unet and not copied.optimized.graphs.recordings
    for seed, got in enumerate(found):
        assert torch.equal(got, draw(copied, seed=seed))
    assert len(calls) == 2


def in_child(pipe: Pipeline, results: Any) -> None:
    with warnings.catch_warnings(record=True) as doubts:
        warnings.simplefilter("always")
        picture = draw(pipe)
    results.put((picture.numpy(), [str(one.message) for one in doubts]))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(pipe: Pipeline, method: str, two_threads: None) -> None:
    """A forked one, in which PyTorch's threads are missing, draws with one thread and says so."""
    want = draw(pipe)
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=in_child, args=(pipe, results), daemon=True)
    child.start()
    picture, doubts = results.get(timeout=PATIENCE)
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert (torch.from_numpy(picture) - want).abs().max() < 1e-4
    assert any("this process was forked" in doubt for doubt in doubts) == (method == "fork")
