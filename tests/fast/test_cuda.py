"""What is written for CUDA, as far as a CPU can tell: the same numbers, on the right devices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.config import SchedulerConfig
from ldm.denoiser import Denoiser
from ldm.errors import ArgumentError
from ldm.fast.compiled import REGIONS, compile_regions, uncompile
from ldm.fast.graphs import Graphs
from ldm.fast.offload import Offload
from ldm.fast.optimize import Optimized
from ldm.fast.recorder import Inputs, Recording
from ldm.guidance import classifier_free
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.text.conditioning import Conditioning, Prompted, Script
from ldm.unet import UNet
from tests.fast.test_unets import CASES, Asked, asked, at_random
from tests.helpers.networks import difference, randomize

SETTINGS = {"num_inference_steps": 3, "seed": 5, "output_type": "pt"}


def rerun(call: Callable[..., Tensor], inputs: Inputs) -> Recording:
    """As a CUDA graph works: the same memory in and out at every replay."""
    output = torch.full_like(call(**inputs), torch.nan)
    return Recording(inputs, output, lambda: output.copy_(call(**inputs)))


def unet_of(seed: int) -> UNet:
    return randomize(UNet(at_random(seed)), seed)


@pytest.mark.parametrize(("seed", "batch", "size"), CASES)
def test_a_recorded_unet_is_the_plain_one(seed: int, batch: int, size: tuple[int, int]) -> None:
    unet = unet_of(seed)
    graphs = Graphs(unet, rerun)
    ask = asked(unet.config, batch, size)
    outputs = [graphs(**ask(step)) for step in range(4)]
    assert len(graphs.recordings) == 1
    for step, got in enumerate(outputs):  # the earlier ones are not written over
        assert torch.equal(got, unet(**ask(step)))


def test_recordings_see_weights_that_change_and_are_made_anew_where_they_move() -> None:
    unet = unet_of(2)
    graphs = Graphs(unet, rerun)
    told = asked(unet.config, 2, (8, 8))(0)
    before = [graphs(**told) for _ in range(2)][-1]
    unet.conv_out.weight.mul_(2)
    assert difference(graphs(**told), before) > 1e-2
    assert len(graphs.recordings) == 1
    unet.conv_out.weight = torch.nn.Parameter(unet.conv_out.weight * 3, requires_grad=False)
    for recorded in (1, 2, 2):
        assert torch.equal(graphs(**told), unet(**told))
        assert len(graphs.recordings) == recorded


def test_recordings_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.fast.graphs.MOST_RECORDINGS", 4)
    unet = unet_of(2)
    graphs = Graphs(unet, rerun)
    kinds = [asked(unet.config, batch, (8, 8))(0) for batch in range(1, 7)]
    for told in (*kinds, *kinds, kinds[-2]):
        assert torch.equal(graphs(**told), unet(**told))
    rows = [len(kept.recording.inputs["x"]) for kept in graphs.recordings.values()]
    assert rows == [3, 4, 6, 5]  # the last one used is the last one to go
    graphs(**kinds[0])
    assert [*graphs.recordings.values()][-1].recording.inputs["x"].shape[0] == 1
    monkeypatch.setattr("ldm.fast.graphs.MOST_KINDS", 3)
    for batch in range(7, 12):
        graphs(**asked(unet.config, batch, (8, 8))(0))
    assert len(graphs.seen) == 3 and len(graphs.recordings) == 4


def test_the_pipeline_records_but_where_layers_change(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    want = pipe("a red car", **SETTINGS).images
    cases: list[dict[str, Any]] = [{}, {"tiling": True}, {"deep_cache": 2}]
    wanted = [pipe("a red car", **SETTINGS, **case).images for case in cases]
    graphs = Graphs(pipe.unet, rerun)
    pipe.optimized = Optimized(graphs=graphs)
    for case, want in zip(cases, wanted, strict=True):
        graphs.recordings.clear()
        assert torch.equal(pipe("a red car", **SETTINGS, **case).images, want)
        assert len(graphs.recordings) == (not case)
    with pipe.explain() as attention:
        pipe("a red car", **SETTINGS)
    assert attention.words()
    assert not graphs.recordings


@pytest.mark.parametrize("seed", [0, 2, 3, 5, 7])
def test_regions_compile_without_a_break(seed: int) -> None:
    """fullgraph=True raises where Dynamo would fall back to Python."""
    unet = unet_of(seed)
    ask = asked(unet.config, 2, (8, 8))
    want = [unet(**ask(step)) for step in range(2)]
    compile_regions(unet, backend="eager")
    blocks = [module for module in unet.modules() if isinstance(module, REGIONS)]
    assert blocks and all(block._compiled_call_impl for block in blocks)
    for step in range(2):
        assert torch.equal(unet(**ask(step)), want[step])
    uncompile(unet)
    assert not any(module._compiled_call_impl for module in unet.modules())


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_the_whole_unet_is_one_graph(seed: int) -> None:
    unet = unet_of(seed)
    told = asked(unet.config, 2, (8, 8))(0)
    compiled = torch.compile(unet, fullgraph=True, backend="eager")
    assert torch.equal(compiled(**told), unet(**told))


def test_one_part_is_away_at_a_time_and_all_come_home(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    want = pipe("a red car", **SETTINGS).images
    parts = [pipe.text_encoder, pipe.unet, pipe.vae]
    states = [copy.deepcopy(part.state_dict()) for part in parts]
    home = [[tensor.data_ptr() for tensor in part.parameters()] for part in parts]
    offload = Offload(parts, torch.device("cpu"))
    pipe.optimized = Optimized(offload=offload)
    away = []
    for progress in pipe.stream("a red car", **SETTINGS):
        moved = [
            [tensor.data_ptr() for tensor in part.parameters()] != at
            for part, at in zip(parts, home, strict=True)
        ]
        assert sum(moved) == 1
        away.append(moved.index(True))
        pipe.preview(progress.x0)
    assert away == [1, 1, 2]
    assert torch.equal(progress.output.images, want)
    offload.send_home()
    for part, state, at in zip(parts, states, home, strict=True):
        assert [tensor.data_ptr() for tensor in part.parameters()] == at
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
    pipe.optimize(False)
    pipe("a red car", **SETTINGS)
    assert offload.away is None


def test_what_an_offloaded_part_reads_follows_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token ids are made where the text encoder was. "meta" stands for the GPU."""
    monkeypatch.setattr(Offload, "bring", lambda self, part: part.to(self.device))
    encoder = Pipeline.from_pretrained(folder, device="cpu").text_encoder
    Offload([encoder], torch.device("meta"))
    ids = torch.zeros(1, 77, dtype=torch.int64)
    assert encoder(ids).context.device.type == "meta"


def test_offload_needs_a_gpu(folder: Path) -> None:
    with pytest.raises(ArgumentError, match="the device is the CPU"):
        Pipeline.from_pretrained(folder, device="cpu").optimize(offload=True)


def on_meta(told: Asked) -> Asked:
    return {name: tensor.to("meta") for name, tensor in told.items()}


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.5)])
@pytest.mark.parametrize("shown", [0, 5])
def test_a_guided_step_stays_on_its_device(weights: tuple[float, ...], shown: int) -> None:
    """On "meta", which refuses to compute with tensors of another device, or to tell values."""
    config = replace(at_random(2), in_channels=4 + shown, out_channels=4)
    unet = UNet(config).requires_grad_(False).to("meta")
    context = torch.empty(5, config.cross_attention_dim, device="meta")
    lines = ((1, Conditioning(context)),)
    texts = tuple(Script(lines, weight) for weight in weights)
    prompted = [Prompted(texts, Script(lines)) for _ in range(2)]
    x, known = torch.empty(2, 4 + shown, 8, 8, device="meta").split([4, shown], dim=1)
    denoise = Denoiser(
        unet,
        DDPMScheduler(SchedulerConfig()),
        prompted,
        classifier_free(7.5, 0.7),
        known=known if shown else None,
    )
    assert denoise(x, denoise.scheduler.level(500)).x0.device == x.device
