"""How steps are recorded on CUDA, by stand-ins: which path is taken, and with equal results."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.fast import memory, onednn
from ldm.fast.fused import FusedAttention, fuse_attention
from ldm.fast.graphs import DecoderGraphs, Graphs, forget_recordings, held_by_recordings
from ldm.fast.install import slow_down
from ldm.fast.optimize import Optimized
from ldm.fast.recorder import Recorder
from ldm.fast.sdpa import FastestAttention
from ldm.layers import Attention
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from tests.fast.test_cuda import SETTINGS, rerun, unet_of
from tests.fast.test_unets import CASES, asked
from tests.helpers.networks import difference

PLACE = torch.device("cpu")
NEVER = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """As in every run."""
    with torch.no_grad():
        yield


class Stream:
    """Nothing waits on a CPU, but whoever is current is noticed."""

    current: Any = None

    def wait_stream(self, other: Stream) -> None:
        assert other is not self


class Graph:
    """Computes again what was captured, into the same memory."""

    capturing: Graph | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], dict[str, Tensor], Any]] = []
        self.name: object = object()

    def pool(self) -> object:
        return self.name

    def replay(self) -> None:
        for call, inputs, output in self.calls:
            for memory_, y in zip(each(output), each(call(**inputs)), strict=True):
                memory_.copy_(y)


def each(output: Any) -> list[Tensor]:
    return output if isinstance(output, list) else [output]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """PyTorch's names that the recorder uses; yields the pools that captures were given."""
    pools: list[object] = []
    main = Stream()
    Stream.current = main
    reserved = iter(range(0, 10**9, 1000))

    @contextlib.contextmanager
    def stream(given: Stream) -> Iterator[None]:
        before, Stream.current = Stream.current, given
        try:
            yield
        finally:
            Stream.current = before

    @contextlib.contextmanager
    def graph(which: Graph, *, pool: Any, stream: Stream, **more: str) -> Iterator[None]:
        assert more == {"capture_error_mode": "thread_local"}
        assert Stream.current is main
        which.name = pool or which.name
        pools.append(pool)
        Stream.current = stream  # and so it stays, where a capture fails
        Graph.capturing = which
        try:
            yield
        finally:
            Graph.capturing = None
        Stream.current = main

    for name, value in {
        "device": contextlib.nullcontext, "Stream": Stream, "CUDAGraph": Graph, "stream": stream,
        "current_stream": lambda *_: Stream.current, "graph": graph,
        "set_stream": lambda s: setattr(Stream, "current", s),
        "memory_reserved": lambda *_: next(reserved), "empty_cache": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, _: None)
    yield pools
    assert Stream.current is main


class Captured(Recorder):
    """The recorder on stand-ins: what it captures is computed again by ``Graph.replay``."""

    def __call__(self, call: Callable[..., Any], inputs: dict[str, Tensor]) -> Any:
        def watched(**given: Tensor) -> Any:
            output = call(**given)
            if Graph.capturing:
                Graph.capturing.calls.append((call, given, output))
            return output

        return super().__call__(watched, inputs)


@pytest.mark.parametrize(("seed", "batch", "size"), CASES[:4])
def test_the_first_call_is_plain_and_the_second_recorded(
    cuda: list[object], seed: int, batch: int, size: tuple[int, int]
) -> None:
    unet = unet_of(seed)
    fuse_attention(unet)
    graphs, ask = Graphs(unet, Captured()), asked(unet.config, batch, size)
    for step, recorded in enumerate((0, 1, 1, 1)):
        got = graphs(**ask(step))
        assert len(graphs.recordings) == recorded
        assert torch.equal(got, unet(**ask(step)))
    assert len(cuda) == 1


def test_recordings_share_a_pool_until_they_are_forgotten(cuda: list[object]) -> None:
    unet = unet_of(2)
    graphs = Graphs(unet, Captured())
    several = [asked(unet.config, batch, (8, 8))(0) for batch in (1, 2)]
    for told in several * 3:
        graphs(**told)
    assert cuda[0] is None and cuda[1] is not None
    assert graphs.held == held_by_recordings(PLACE) == 2000
    assert forget_recordings(PLACE)
    gc.collect()
    assert graphs.held == 0 and not graphs.recordings
    assert not forget_recordings(PLACE)
    assert torch.equal(graphs(**several[0]), unet(**several[0]))
    assert cuda[2] is None and graphs.held == 1000


def test_a_replay_reads_the_present_text_and_weights(cuda: list[object]) -> None:
    """Keys and values are not part of a recording: they are renewed before a replay."""
    unet = unet_of(2)
    fuse_attention(unet)
    graphs, ask = Graphs(unet, Captured()), asked(unet.config, 2, (8, 8))
    for step in range(3):
        graphs(**ask(step))
    (kept,) = graphs.recordings.values()
    assert kept.read
    computed: list[Any] = []
    for attention, _ in kept.read:
        attention.to_k.register_forward_hook(lambda *_: computed.append(1))
    told = ask(3)
    graphs(**told)
    assert not computed  # the same text
    other = told | {"context": told["context"] * 2}
    assert torch.equal(graphs(**other), unet(**other))
    assert len(computed) >= len(kept.read)
    attention = kept.read[0][0]
    for layer in (attention.to_v, attention.to_k, attention.to_q):
        before = graphs(**other)
        layer.weight.mul_(1.5)
        got = graphs(**other)
        assert torch.equal(got, unet(**other)) and not torch.equal(got, before)
    told["context"].mul_(0.5)  # in place
    assert torch.equal(graphs(**told), unet(**told))
    assert len(graphs.recordings) == 1


@pytest.mark.parametrize("during", ["warming up", "capture"])
def test_without_memory_steps_are_plain(cuda: list[object], during: str) -> None:
    unet = unet_of(2)
    ask = asked(unet.config, 2, (8, 8))

    class Full(Captured):
        def __call__(self, call: Any, inputs: Any) -> Any:
            def short(**given: Tensor) -> Any:
                if (Graph.capturing is None) == (during == "warming up"):
                    raise NEVER
                return call(**given)

            return super().__call__(short, inputs)

    graphs = Graphs(unet, Full())
    graphs(**ask(0))
    with pytest.warns(UserWarning, match="without recording them, slower: there is too little"):
        assert torch.equal(graphs(**ask(1)), unet(**ask(1)))
    Stream.current = graphs._stream or Stream.current
    assert torch.equal(graphs(**ask(2)), unet(**ask(2)))  # and no second try
    assert not graphs.recordings


def test_what_cuda_refuses_is_said(cuda: list[object]) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    unet = unet_of(2)
    graphs, told = Graphs(unet, refuse), asked(unet.config, 2, (8, 8))(0)
    graphs(**told)
    with pytest.warns(UserWarning, match="CUDA refused: operation not permitted"):
        assert torch.equal(graphs(**told), unet(**told))


@pytest.mark.parametrize(("seed", "batch", "size"), CASES)
def test_fused_attention(seed: int, batch: int, size: tuple[int, int]) -> None:
    unet, told = unet_of(seed), {}
    told = asked(unet.config, batch, size)(0)
    want, states = unet(**told), copy.deepcopy(unet.state_dict())
    fuse_attention(unet)
    fused = [module for module in unet.modules() if isinstance(module, FusedAttention)]
    assert bool(fused) == any(isinstance(module, Attention) for module in unet.modules())
    assert difference(unet(**told), want) <= 1e-5 * want.std()
    assert all(torch.equal(y, states[name]) for name, y in unet.state_dict().items())
    for attention in fused:
        if attention.together is None:  # to_k and to_v read the text
            continue
        assert attention.are_together()
        attention.to_k.weight.mul_(2)  # in place: seen
        x = torch.randn(1, 3, attention.to_q.in_features)
        plain = [layer(x).flatten() for layer in (attention.to_q, attention.to_k, attention.to_v)]
        rows = attention.queries_keys_values(x, x)
        got = [y.transpose(1, 2).flatten() for y in rows]
        assert all(difference(a, b) < 1e-5 for a, b in zip(got, plain, strict=True))
        hook = attention.to_q.register_forward_pre_hook(lambda *_: None)
        assert not attention.are_together()  # ControlNet-LLLite's
        hook.remove()
        copied = copy.deepcopy(attention)
        assert not copied.are_together()
        attention.to_v.weight.data = attention.to_v.weight.data.clone()  # moved
        assert not attention.are_together()
        with torch.enable_grad():
            assert not copied.are_together()
    slow_down(unet)
    assert not any(isinstance(module, FusedAttention) for module in unet.modules())


def test_default_and_choice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, for which "cpu" stands here, nobody has to ask; what was chosen stays."""
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    assert not pipe.optimized.on and pipe.optimized.by_default
    monkeypatch.setattr(Pipeline, "device", torch.device("cuda"))
    monkeypatch.setattr("ldm.loading.model.check_process", lambda device: None)
    monkeypatch.setattr("ldm.interface.diffusers_methods.choose_device", torch.device)
    pipe.fast_by_default()
    graphs = pipe.optimized.graphs
    assert isinstance(graphs, Graphs) and pipe.optimized.by_default
    assert any(isinstance(module, FusedAttention) for module in pipe.unet.modules())
    copied = copy.deepcopy(pipe)
    assert copied.optimized.graphs.unet is copied.unet
    fused = [m for m in copied.unet.modules() if isinstance(m, FusedAttention)]
    assert any(m.are_together() for m in fused)
    with pipe.plain():
        assert not pipe.optimized.on
    assert pipe.optimized.graphs and pipe.optimized.by_default
    pipe.optimize(False)
    with pipe.plain():
        pass
    assert not pipe.optimized.on and not pipe.optimized.by_default


def test_the_paths_of_runs(folder: Path) -> None:
    """What changes layers is computed plainly, beside recordings that stay right."""
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 1), ({"tiling": True}, 1), ({"deep_cache": 2}, 1), ({"guidance_scale": 1.0}, 2),
        ({"height": 32}, 3), ({"generator": torch.Generator().manual_seed(3), "seed": None}, 3),
    ]  # fmt: skip
    want = [drawn(pipe, **case) for case, _ in cases]
    fuse_attention(pipe.unet)
    graphs = Graphs(pipe.unet, rerun)
    pipe.optimized = Optimized(graphs=graphs, on=True)
    for (case, recorded), picture in zip(cases, want, strict=True):
        if "generator" in case:
            case["generator"].manual_seed(3)
        for _ in range(1 + ("generator" not in case)):
            assert difference(drawn(pipe, **case), picture) < 1e-4
        assert len(graphs.recordings) == recorded


def test_weights_that_a_lora_replaces_are_recorded_anew(cuda: list[object]) -> None:
    """A LoRA assigns new parameters, and gives the old ones back: so do their recordings."""
    unet = unet_of(2)
    fuse_attention(unet)
    graphs, told = Graphs(unet, Captured()), asked(unet.config, 2, (8, 8))(0)
    layers = [m for m in unet.modules() if isinstance(m, FusedAttention) and m.are_together()]
    before = [graphs(**told) for _ in range(3)][-1]
    own = [layer.to_v.weight for layer in layers]
    for layer, weight in zip(layers, own, strict=True):
        layer.to_v.weight = torch.nn.Parameter(2 * weight, requires_grad=False)
    assert layers and not any(layer.are_together() for layer in layers)
    for recorded in (1, 2, 2):
        got = graphs(**told)
        assert torch.equal(got, unet(**told)) and len(graphs.recordings) == recorded
    assert difference(got, before) > 1e-3
    for layer, weight in zip(layers, own, strict=True):
        layer.to_v.weight = weight
    assert all(layer.are_together() for layer in layers)
    assert torch.equal(graphs(**told), before) and len(graphs.recordings) == 2


def drawn(pipe: Pipeline, **more: Any) -> Tensor:
    return pipe("a red car", **SETTINGS | {"num_inference_steps": 4} | more).images


def test_memory_of_recordings_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    place = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 400)
    assert memory.available_memory(place) == 1300
    monkeypatch.setattr(memory, "held_by_recordings", lambda _: 200)
    assert memory.available_memory(place) == 1100


def test_recordings_go_before_strips_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = Pipeline.from_pretrained(folder, device="cpu").vae
    z, given = torch.randn(1, 4, 8, 8), []
    memory_of = {True: [10**9], False: [1, 10**9], None: [1, 1]}
    for case, sizes in memory_of.items():
        left = iter(sizes)
        monkeypatch.setattr(memory, "available_memory", lambda _, left=left: next(left))
        monkeypatch.setattr(memory, "forget_recordings", lambda _: given.append(1) or True)
        assert memory.decode_needs_strips(vae, z, PLACE) is (case is None)
    assert len(given) == 2


def test_a_decode_is_recorded_at_its_second_time(
    cuda: list[object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = Pipeline.from_pretrained(folder, device="cpu").vae
    decoder, z = DecoderGraphs(vae, Captured()), torch.randn(4, 1, 4, 8, 8)
    outputs = []
    for one, recorded in zip(z, (0, 1, 1, 1), strict=True):
        outputs.append(decoder(one))
        assert len(decoder.recordings) == recorded
    for one, got in zip(z, outputs, strict=True):
        assert torch.equal(got, vae.decode(one))
    assert len(cuda) == 1 and held_by_recordings(PLACE) >= decoder.held > 0
    decoder(z[0, ..., :6])  # another size
    assert len(decoder.recordings) == 1
    vae.decoder.conv_out.weight.mul_(2)
    assert torch.equal(decoder(z[0]), vae.decode(z[0]))
    assert forget_recordings(PLACE) and not decoder.recordings
    monkeypatch.setattr("ldm.fast.graphs.MOST_DECODED", 1000)  # larger ones are not recorded
    for _ in range(3):
        assert torch.equal(decoder(z[0]), vae.decode(z[0]))
    assert not decoder.recordings


def test_the_pipeline_records_decodes_but_of_views_and_in_strips(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    cases: list[dict[str, Any]] = [{}, {"tiling": True}]
    wanted = [pipe(["a red car"] * 3, **SETTINGS, **case).images for case in cases]
    decoder = DecoderGraphs(pipe.vae, rerun)
    pipe.optimized = Optimized(decoder=decoder, on=True)
    for case, want in zip(cases, wanted, strict=True):
        decoder.forget()
        assert torch.equal(pipe(["a red car"] * 3, **SETTINGS, **case).images, want)
        assert len(decoder.recordings) == (not case)
    decoder.forget()
    monkeypatch.setattr("ldm.latents.decode_needs_strips", lambda *_: True)
    assert difference(pipe(["a red car"] * 3, **SETTINGS).images, wanted[0]) < 1e-4
    assert not decoder.recordings
    again = copy.deepcopy(decoder)
    assert type(again) is DecoderGraphs and again.vae is not pipe.vae and not again.recordings


def test_statistics_of_other_devices() -> None:
    x = (3 * torch.randn(1, 16, 5, 6) + 1).to(memory_format=torch.channels_last)
    want = onednn.group_statistics(x, 4, 1e-5)

    class Elsewhere(torch.Tensor):
        is_cpu = False

    got = onednn.group_statistics(x.as_subclass(Elsewhere), 4, 1e-5)
    for a, b in zip(got, want, strict=True):
        assert difference(a.as_subclass(Tensor), b) < 1e-5


def test_the_order_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    before = _cur_sdpa_kernel_backends(with_priority=True)
    fastest, place = FastestAttention(), torch.device("cuda")
    with fastest(place):
        order = _cur_sdpa_kernel_backends(with_priority=True)
        assert order[:2] == [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
        with fastest(place), contextlib.suppress(ValueError), fastest(place):
            raise ValueError
        assert _cur_sdpa_kernel_backends(with_priority=True) == order
    assert _cur_sdpa_kernel_backends(with_priority=True) == before
    capability = (8, 0)
    with fastest(place):
        assert _cur_sdpa_kernel_backends(with_priority=True) == before
    with fastest(PLACE):
        assert _cur_sdpa_kernel_backends(with_priority=True) == before


def test_a_unet_of_threads_is_called_in_turn(cuda: list[object]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    unet = unet_of(2)
    graphs, ask = Graphs(unet, rerun), asked(unet.config, 2, (8, 8))
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda step: graphs(**ask(step % 4)), range(16)))
    for step, y in enumerate(got):
        assert torch.equal(y, unet(**ask(step % 4)))
    assert isinstance(graphs.unet, UNet)
