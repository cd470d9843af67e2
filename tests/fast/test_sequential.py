"""Blocks on the GPU two at a time, by a stand-in whose copies come late, as a GPU's do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.cli.options import read
from ldm.cli.ways import offloading
from ldm.errors import ArgumentError
from ldm.fast import sequential
from ldm.fast.optimize import Optimized, check_optimize
from ldm.fast.sequential import Sequential, Streams, held, lay_out, size_of, split
from ldm.layers import ResnetBlock, TransformerBlock
from ldm.pipeline import Pipeline
from tests.fast.test_cuda import SETTINGS, unet_of
from tests.fast.test_unets import asked
from tests.helpers.loras import save_lora_of_ones
from tests.helpers.networks import difference

PLACE = torch.device("cpu")
Copy = list[tuple[Tensor, Tensor]]


class Late:
    """Copies when somebody waits for it; until then the memory is NaN, and no block computes."""

    def __init__(self) -> None:
        self.copies: list[Copy] = []
        self.copied = self.marked = 0  # bytes; moments

    def pinned(self, data: Tensor) -> Tensor:
        return data

    def mark(self) -> int:
        self.marked += 1
        return self.marked

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: int) -> Copy:
        assert 0 < after <= self.marked
        found = [(target, source.clone()) for target, source in pairs]  # read early, written late
        for target, source in found:
            target.view(torch.uint8).fill_(255) if target.ndim else target.fill_(255)
            self.copied += source.nbytes
        self.copies.append(found)
        return found

    def wait(self, copied: Copy) -> None:
        assert any(copied is one for one in self.copies)
        for target, source in copied:
            target.copy_(source)
        self.copies = [one for one in self.copies if one is not copied]

    def finish(self) -> None:
        self.copies.clear()


class Watched(Sequential):
    """Counts the blocks whose weights are on the GPU, or on their way."""

    most = bytes_there = brought = ahead = 0

    def bring(self, part: nn.Module) -> None:
        before, expected = self.present, self.next
        super().bring(part)
        assert self.present is not None and self.present.block is part
        if self.present is before:
            return
        there = [one for one in (self.present, self.next) if one is not None]
        assert len({one.slot for one in there}) == len(there)
        self.most = max(self.most, len(there))
        held = [size_of(data for _, data in one.home) for one in there]
        assert max(held) <= self.largest
        self.bytes_there = max(self.bytes_there, sum(held))
        self.brought += 1
        self.ahead += expected is self.present


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of tests are small: some of them are blocks nevertheless."""
    monkeypatch.setattr(sequential, "LARGE", 4096)


def offloaded(pipe: Pipeline) -> Watched:
    parts = [pipe.unet, pipe.vae, *(model.encoder for model in pipe.text_models)]
    away = Watched([*parts, *pipe.controlnets.values()], PLACE, mover=Late())
    pipe.optimized = Optimized(offload=away, sequential=True, on=True)
    return away


@pytest.mark.parametrize("seed", [0, 2, 3, 5])
def test_a_unet_by_blocks_is_the_plain_one(small: None, seed: int) -> None:
    unet = unet_of(seed)
    ask = asked(unet.config, 2, (8, 8))
    with torch.no_grad():
        want = [unet(**ask(step)) for step in range(4)]
        away = Watched([unet], PLACE, mover=Late())
        for step in range(4):
            assert torch.equal(unet(**ask(step)), want[step])
            if step == 1:
                away.brought = away.ahead = 0
    assert away.most == 2 and away.ahead == away.brought > 0  # each was copied beside another
    away.end(PLACE)
    assert not away.buffers
    with torch.no_grad():
        assert torch.equal(unet(**ask(0)), want[0])


def test_a_pipeline_by_blocks(small: None, folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    want = pipe(["a red car", "a cat"], **SETTINGS).images
    state = copy.deepcopy(pipe.unet.state_dict())
    away = offloaded(pipe)
    assert torch.equal(pipe(["a red car", "a cat"], **SETTINGS).images, want)
    pickle.dumps(pipe)
    assert torch.equal(copy.deepcopy(pipe)(["a red car", "a cat"], **SETTINGS).images, want)
    assert away.most == 2 and away.bytes_there <= 2 * away.largest
    pipe.send_home()
    assert all(torch.equal(value, state[name]) for name, value in pipe.unet.state_dict().items())
    again = copy.deepcopy(pipe.unet)
    assert again.conv_in.weight.data_ptr() != pipe.unet.conv_in.weight.data_ptr()


def test_weights_that_change_while_they_are_on_their_way(small: None) -> None:
    unet, plain = unet_of(2), unet_of(2)
    told = asked(unet.config, 1, (8, 8))(0)
    away = Watched([unet], PLACE, mover=Late())
    with torch.no_grad():
        for _ in range(2):
            before = unet(**told)
        assert away.next is not None  # the first block of the next step
        first = away.next.block
        twin = dict(plain.named_modules())[{m: n for n, m in unet.named_modules()}[first]]
        for one in (first, twin):  # where it lies
            next(one.parameters()).mul_(2)
        assert away.next is not None and not torch.equal(unet(**told), before)
        assert torch.equal(unet(**told), plain(**told))
        for one in (first, twin):  # another tensor in its place
            layer = next(m for m in one.modules() if isinstance(m, nn.Conv2d | nn.Linear))
            layer.weight = nn.Parameter(layer.weight * 3, requires_grad=False)
        assert torch.equal(unet(**told), plain(**told))


def test_a_lora_is_put_on_at_home(small: None, folder: Path, tmp_path: Path) -> None:
    """``changes_model`` takes the blocks off first: what was changed there would be lost."""
    pipe, plain = (Pipeline.from_pretrained(folder, device="cpu") for _ in range(2))
    lora = save_lora_of_ones(plain.unet, tmp_path)
    before = plain("a red car", **SETTINGS).images
    plain.load_lora_weights(lora)
    want = plain("a red car", **SETTINGS).images
    assert difference(want, before) > 1e-4
    away = offloaded(pipe)
    pipe("a red car", **SETTINGS | {"output_type": "latent"})
    assert away.present is not None and away.buffers
    pipe.load_lora_weights(lora)
    assert away.present is None and away.next is None and not away.buffers
    assert torch.equal(pipe("a red car", **SETTINGS).images, want)
    pipe.unload_lora_weights()
    assert torch.equal(pipe("a red car", **SETTINGS).images, before)


@pytest.mark.parametrize(
    "way", [{"offload": True}, {"offload": "sequential"}, {"int8_weights": True}]
)
def test_what_is_offloaded_is_never_wholly_on_the_gpu(
    folder: Path, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while it is loaded, nor while something is loaded beside it. "meta" is the GPU."""
    gpu, loaded = torch.device("meta"), []

    def never(parts: Any, whole: Any, device: torch.device, how: Any, rounded: Any) -> Watched:
        assert device == gpu and how == way.get("offload", how)
        assert bool(rounded) == ("int8_weights" in way)
        loaded.append({one.device.type for part in parts for one in part.parameters()})
        return Watched(parts, PLACE, mover=Late())

    monkeypatch.setattr("ldm.pipeline.choose_device", lambda _: gpu)
    monkeypatch.setattr("ldm.fast.optimize.keep_away", never)
    monkeypatch.setattr(Pipeline, "device", gpu)
    pipe = Pipeline.from_pretrained(folder, dtype="float32", **way)
    assert pipe.optimized.ways.items() >= way.items()
    with pipe.plain():
        assert pipe.optimized.offload is None
        assert next(pipe.unet.parameters()).device.type == "cpu"
    assert pipe.optimized.ways.items() >= way.items() and loaded == [{"cpu"}] * 2
    pipe.optimize(False)
    assert next(pipe.unet.parameters()).device == gpu


def test_strips_and_other_orders(small: None, folder: Path, monkeypatch: Any) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    cases: list[dict[str, Any]] = [{"deep_cache": 2}, {"tiling": True}, {"guidance_scale": 1.0}]
    monkeypatch.setattr("ldm.latents.decode_needs_strips", lambda *_: True)
    wanted = [pipe("a red car", **SETTINGS, **case).images for case in cases]
    away = offloaded(pipe)
    for case, want in zip(cases, wanted, strict=True):
        assert torch.equal(pipe("a red car", **SETTINGS, **case).images, want)
    assert away.most == 2


def test_blocks_and_what_stays(small: None) -> None:
    unet = unet_of(2)
    blocks, rest = split(unet)
    kinds = [type(block) for block in blocks]
    count = {kind: sum(type(m) is kind for m in unet.modules()) for kind in sequential.BLOCKS}
    assert kinds.count(ResnetBlock) == count[ResnetBlock] > 0
    assert kinds.count(TransformerBlock) == count[TransformerBlock] > 0
    inside = {id(one) for block in blocks for one in block.parameters()}
    assert inside.isdisjoint(map(id, rest))
    assert len(inside) + len(rest) == len(list(unet.parameters()))
    largest = max(size_of(block.parameters()) for block in blocks)
    assert held([unet]) == 2 * largest + sum(one.nbytes for one in rest)
    assert split(unet, whole=[unet]) == ([unet], [])
    assert held([unet]) < sum(one.nbytes for one in unet.parameters())


def test_the_layout_keeps_memory_formats() -> None:
    conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    tensors = [conv.weight.data, conv.bias.data, torch.tensor(3), torch.ones(2).bfloat16()]
    buffer = torch.zeros(size_of(tensors), dtype=torch.uint8)
    for there, data in zip(lay_out(tensors, buffer), tensors, strict=True):
        assert (there.shape, there.dtype) == (data.shape, data.dtype)
        assert there.stride() == data.stride()
        assert (there.data_ptr() - buffer.data_ptr()) % sequential.ALIGNMENT == 0
        there.copy_(data)
    for there, data in zip(lay_out(tensors, buffer), tensors, strict=True):  # none overlap
        assert torch.equal(there, data)


def test_streams_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = name if name == "main" else "copies"

        def __enter__(self) -> None:
            calls.append("in")

        def __exit__(self, *_: object) -> None:
            calls.append("out")

        def record_event(self) -> str:
            return f"event of {self.name}"

        def wait_event(self, event: str) -> None:
            calls.append(f"{self.name} waits for {event}")

    main = Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: main)
    streams = Streams(PLACE)
    target = torch.zeros(2)
    streams.wait(streams.copy([(target, torch.ones(2))], streams.mark()))
    assert target.sum() == 2
    assert calls == [
        "copies waits for event of main", "in", "out", "main waits for event of copies",
    ]  # fmt: skip
    assert isinstance(copy.deepcopy(streams), Streams)


def test_options_and_errors(folder: Path) -> None:
    assert offloading(read(["x", "--sequential-offload"])) == "sequential"
    assert offloading(read(["x", "--offload"])) is True and offloading(read(["x"])) is False
    away = Optimized(offload=Any, sequential=True)  # type: ignore[arg-type]
    assert away.ways["offload"] == "sequential"
    with pytest.raises(ArgumentError, match="'sequential' keeps parts off the GPU, but the dev"):
        Pipeline.from_pretrained(folder, device="cpu", offload="sequential")
    with pytest.raises(ArgumentError, match="'sequential' and compile exclude each other"):
        check_optimize(torch.device("cuda"), compile=True, offload="sequential")
    with pytest.raises(ArgumentError, match="offload is 'blocks'"):
        Pipeline.from_pretrained(folder, device="cpu", offload="blocks")  # type: ignore[arg-type]
