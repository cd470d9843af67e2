"""What depends on the time alone is computed once a run, is right, and never stale."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm.fast import slow_down, speed_up
from ldm.fast.time_cache import KNOWN, TimeLinear, cache_of, compute_times, known_times
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from tests.fast.test_fast import draw, small_unet
from tests.fast.test_unets import at_random
from tests.helpers.networks import difference

TIMES = [999.0, 500.25, 1.0]


@pytest.fixture(autouse=True)
def without_gradients() -> None:
    with torch.no_grad():
        yield


def told(batch: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return draw(batch, 4, 9, 7).to(dtype), draw(batch, 5, 32).to(dtype)


def full(t: float, batch: int = 2) -> Tensor:
    return torch.full((batch,), t)


def counted(unet: UNet) -> list[nn.Module]:
    """The layers of the time that compute, as they do."""
    calls: list[nn.Module] = []
    for name in ("linear_1", "linear_2"):
        layer = getattr(unet.time_embedding, name)
        layer.register_forward_hook(lambda layer, *_: calls.append(layer))
    return calls


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shift", ["default", "scale_shift"])
def test_it_is_the_plain_one(batch: int, shift: str) -> None:
    unet = small_unet(resnet_time_scale_shift=shift)
    x, context = told(batch)
    times = [*TIMES, 7.0]  # the last one is a surprise
    want = [unet(x, full(t, batch), context) for t in times]
    speed_up(unet)
    assert cache_of(unet) is not None
    with known_times(compute_times([unet], TIMES)):
        copied, pickled = copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))
        calls = counted(unet)
        for t, exact in zip(times, want, strict=True):
            assert difference(unet(x, full(t, batch), context), exact) <= 1e-5
        assert len(calls) == 2  # for the surprise
        mixed = torch.tensor([TIMES[0]] * (batch - 1) + [TIMES[1]])
        slow_down(copied)
        assert type(copied) is UNet and cache_of(copied) is None
        exact = copied(x, mixed, context)
        assert difference(unet(x, mixed, context), exact) <= 1e-5
        assert difference(pickled(x, mixed, context), exact) <= 1e-5
    assert not KNOWN.get()


@pytest.mark.parametrize("where", ["time_embedding.linear_2", "mid_block.resnets.0.time_emb_proj"])
def test_weights_that_change_are_seen(where: str) -> None:
    unet = small_unet()
    x, context = told()
    speed_up(unet)
    with known_times(compute_times([unet], TIMES)):
        before = unet(x, full(1.0), context)
        layer = unet.get_submodule(where)
        layer.weight.mul_(2)
        after = unet(x, full(1.0), context)
    assert difference(after, before) > 1e-3
    with known_times(compute_times([unet], TIMES)):
        assert difference(unet(x, full(1.0), context), after) <= 1e-5
        layer.weight = nn.Parameter(layer.weight / 2, requires_grad=False)
        assert difference(unet(x, full(1.0), context), before) <= 1e-5


def test_a_run_without_steps() -> None:
    unet = small_unet()
    speed_up(unet)
    assert compute_times([unet], TIMES) and not compute_times([unet], [])


def test_unets_that_are_told_more_expect_nothing() -> None:
    unet = UNet(at_random(1))
    assert unet.config.class_conditional
    speed_up(unet)
    kinds = [module for module in unet.modules() if isinstance(module, TimeLinear)]
    assert len(kinds) > 2 and not compute_times([unet], TIMES)


@pytest.mark.parametrize("cache", [1, 2])
@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_pipeline(folder: Path, cache: int, sampler: str) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    settings = {"num_inference_steps": 4, "seed": 5, "output_type": "pt", "sampler": sampler}
    want = pipe("a red car", deep_cache=cache, **settings).images
    pipe.optimize()
    calls = counted(pipe.unet)
    first = pipe("a red car", deep_cache=cache, **settings).images
    assert difference(first, want) <= 1e-4
    assert len(calls) == 2  # all steps at once
    other = pipe.stream("a red car", deep_cache=cache, **settings | {"num_inference_steps": 3})
    next(other)
    again = pipe("a red car", deep_cache=cache, **settings).images  # while another one is running
    assert torch.equal(again, first)
    *_, last = other
    pipe.optimize(False)
    shorter = pipe("a red car", deep_cache=cache, **settings | {"num_inference_steps": 3}).images
    assert difference(last.output.images, shorter) <= 1e-4
