"""Other engines beside ours on the CPU: OpenVINO, and diffusers compiled with frozen weights.

`--only peers` runs these, `--only openvino` and `--only compiled` those of one. Each is diffusers'
U-Net: converted for one shape by `openvino.convert_model`, or compiled whole by `torch.compile`
with `torch._inductor.config.freezing`, which takes minutes before the turns. The errors of both
are against diffusers' float32. `--only engine` has our own two ways instead, `optimize()` and
`optimize(engine="openvino")`, and whole pictures by the latter beside diffusers'. A row is skipped
where a peer is not installed.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.folder import empty
from ldm.config import UNetConfig
from ldm.fast import adapt_to_cpu, speed_up
from ldm.fast.openvino.library import Engine, load
from ldm.fast.openvino.parts import EngineUNet
from ldm.unet import UNet
from tools.bench.loops import built_in as built_in_pictures
from tools.bench.models import allowed_error, error, pair, share, unet_inputs
from tools.bench.race import Race, SkipError
from tools.bench.sizes import at

Call = Callable[[Tensor, Tensor, Tensor], Tensor]  # latents, times, texts → output
COMPILERS = ("g++", "clang++", "c++")
NAMES = {torch.bfloat16: "bf16", torch.float32: "f32"}


class Outputs(nn.Module):
    """diffusers' U-Net as a function of tensors."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Return the output alone."""
        return self.unet(x, t, context, return_dict=False)[0]


def converted(unet: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Call:
    """Convert a float32 U-Net for OpenVINO, which computes in ``dtype``, for one shape."""
    openvino = load()
    with torch.no_grad():
        model = openvino.convert_model(
            Outputs(unet), example_input=inputs, input=[list(x.shape) for x in inputs]
        )
    settings = {
        "INFERENCE_PRECISION_HINT": NAMES[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def call(*given: Tensor) -> Tensor:
        values = [x.float().numpy() for x in given]
        return torch.from_numpy(compiled(values, share_inputs=True)[0])

    return call


@contextmanager
def freezing() -> Iterator[None]:
    """Have inductor keep weights as constants, packed for oneDNN."""
    from torch._inductor import config

    with config.patch(freezing=True):
        yield


def frozen(unet: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Call:
    """Compile a U-Net whole in ``dtype``, with its weights as constants."""
    compiled = torch.compile(Outputs(unet.to(dtype)), fullgraph=True, dynamic=False)

    def call(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        with freezing(), torch.no_grad():
            return compiled(x.to(dtype), t, context.to(dtype))

    call(*inputs)
    return call


ENGINES = {"openvino": ("OpenVINO", converted), "compiled": ("diffusers, compiled", frozen)}


def require(engine: str) -> None:
    """Raise SkipError for an engine that is not here."""
    if engine == "openvino" and find_spec("openvino") is None:
        raise SkipError("OpenVINO is not installed: pip install openvino")
    if engine == "compiled" and not any(map(shutil.which, COMPILERS)):
        raise SkipError(f"torch.compile needs a C++ compiler, one of {', '.join(COMPILERS)}")


def label(engine: str) -> str:
    """Name an engine with its version."""
    return f"{ENGINES[engine][0]} {version('openvino' if engine == 'openvino' else 'torch')}"


def built_in() -> tuple[nn.Module, nn.Module]:
    """Return the built-in model's U-Net as (ours, diffusers'), float32, of the same tensors."""
    import diffusers

    folder = asset_path("weights") / "unet"
    peer = diffusers.UNet2DConditionModel.from_pretrained(folder).requires_grad_(False).eval()
    return share(empty(UNet, UNetConfig.from_file(folder / "config.json")), peer), peer


class Step(NamedTuple):
    """A guided step in turns: both U-Nets in float32, what they read, and how the row says it."""

    ours: UNet
    theirs: nn.Module
    inputs: tuple[Tensor, ...]
    what: str
    turns: int
    runs: int


def guided_step(size: int | None) -> Step:
    """Make a step of Stable Diffusion 1.5's size; None: of the built-in model."""
    ours, theirs = built_in() if size is None else pair("unet")
    side = theirs.config.sample_size if size is None else at(size, size // 4)
    inputs = unet_inputs(theirs, side, torch.float32)
    what = f"{'built-in model' if size is None else 'SD 1.5'}, guided step, {side}x{side}"
    turns, runs = (5, 10) if size is None else (3, 1)
    return Step(cast(UNet, ours), theirs, inputs, what, turns, runs)


def step(engine: str, dtype: torch.dtype, size: int | None) -> Race:
    """Race a guided step of Stable Diffusion 1.5's size; None: of the built-in model."""
    require(engine)
    ours, theirs, inputs, what, turns, runs = guided_step(size)
    exact = theirs(*inputs).sample
    ours.to(dtype)
    speed_up(ours)
    x, t, context = inputs[0].to(dtype), inputs[1], inputs[2].to(dtype)
    call = ENGINES[engine][1](theirs, inputs, dtype)
    found: dict[str, float] = {}

    def check() -> tuple[float, float]:
        found["error of ours"] = error(ours(x, t, context), exact)
        found["of theirs"] = error(call(*inputs), exact)
        peer = max(found["of theirs"], 0.02)  # where it computes in float32 after all
        return found["error of ours"], allowed_error(peer, dtype)

    return Race(
        f"{what}, {NAMES[dtype]}",
        lambda: ours(x, t, context),
        lambda: call(*inputs),
        check,
        1.0,
        label(engine),
        turns=turns,
        runs=runs,
        more=lambda: {name: f"{value:.2g}" for name, value in found.items()},
    )


def rows(engine: str) -> dict[str, Callable[[], Race]]:
    """Make the sections of an engine."""
    made: dict[str, Callable[[], Race]] = {}
    for dtype, name in NAMES.items():
        for size in (64, 32):
            made[f"{engine}-{name}-{size}"] = partial(step, engine, dtype, size)
        made[f"{engine}-{name}-builtin"] = partial(step, engine, dtype, None)
    return made


def own_engine(dtype: torch.dtype, size: int | None) -> Race:
    """Race a guided step, as ``step``: OpenVINO behind our U-Net against our layers."""
    require("openvino")
    ours, theirs, inputs, what, turns, runs = guided_step(size)
    exact = theirs(*inputs).sample
    ours.to(dtype)
    engine = EngineUNet(adapt_to_cpu(copy.deepcopy(ours)), Engine())
    speed_up(ours)
    x, t, context = inputs[0].to(dtype), inputs[1], inputs[2].to(dtype)
    found: dict[str, float] = {}

    def check() -> tuple[float, float]:
        found["error of ours"] = error(ours(x, t, context), exact)
        found["of the engine"] = error(engine(x, t, context), exact)
        return found["of the engine"], allowed_error(max(found["error of ours"], 0.02), dtype)

    return Race(
        f"{what}, {NAMES[dtype]}, by OpenVINO {version('openvino')}",
        lambda: engine(x, t, context),
        lambda: ours(x, t, context),
        check,
        1.0,
        "ldm optimized",
        turns=turns,
        runs=runs,
        more=lambda: {name: f"{value:.2g}" for name, value in found.items()},
    )


def whole(goal: float, dtype: str | None) -> Race:
    """Race the built-in model's whole pictures by OpenVINO against diffusers'."""
    require("openvino")
    return built_in_pictures(1, goal, dtype, "openvino")


OWN = {
    **{f"engine-{name}": partial(own_engine, dtype, None) for dtype, name in NAMES.items()},
    **{f"engine-{name}-64": partial(own_engine, dtype, 64) for dtype, name in NAMES.items()},
    "engine-warm": partial(whole, 2.5, None),
    "engine-warm-fp32": partial(whole, 1.4, "float32"),
}
SECTIONS = OWN | {name: row for engine in ENGINES for name, row in rows(engine).items()}
