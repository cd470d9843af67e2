"""A training step of a LoRA, of Stable Diffusion 1.5's size, beside diffusers with peft.

`python -m tools.bench --only lora` runs all of these. Ours is `ldm.training.loop`, as `ldm train
lora` runs it; theirs is the loop of diffusers' train_text_to_image_lora.py. Both learn rank 16 of
the attentions' layers from the same weights, latents, texts' states, noise and times. In bfloat16,
as their script does, the frozen weights are stored in it, the factors in float32.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm.config import SchedulerConfig
from ldm.fast import adapt_to_cpu
from ldm.fast.frozen import freeze
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.training.checkpointing import checkpoint_partly
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.finetuning.adapters import AdapterOptions, Adapters
from ldm.training.finetuning.trained import Trained
from ldm.training.loop import train_steps
from ldm.training.recipes.base import Recipe
from ldm.training.recipes.frozen_base import HALVES
from ldm.unet import UNet
from tools.bench.models import fill, pair
from tools.bench.processes import python
from tools.bench.race import Race
from tools.bench.sizes import at, family

TOKENS, RANK = 77, 16
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
BETAS, WEIGHT_DECAY, RATE, NORM = (0.9, 0.999), 1e-2, 1e-4, 1.0
FORMATS = {"no": "float32", "bf16": "bf16"}
ALIKE = {"no": 1e-3, "bf16": 3e-2}  # relative difference of loss and gradients
STEPS = 2  # of which the memory is measured
NEVER = 10**9


def latents() -> int:
    """Return the side of what is learned from."""
    return at(32, 16)


class Learning(Recipe):
    """The recipe "lora" with made-up latents and texts' states."""

    def __init__(self, unet: UNet) -> None:
        torch.manual_seed(0)
        self.unet = adapt_to_cpu(unet)
        pipe = cast("Pipeline", SimpleNamespace(unet=self.unet))
        adapters = Adapters(self.unet, AdapterOptions(rank=RANK, targets=TARGETS))
        for name, value in adapters.named_parameters():  # or the gradients of down were 0
            if name.endswith("up"):
                nn.init.normal_(value, std=0.02)
        self.model = Trained(pipe, {"unet": adapters})
        self.scheduler = DDPMScheduler(SchedulerConfig())

    def prepare(self, accelerator: Any) -> None:
        network: nn.Module = self.unet
        freeze(network, HALVES.get(accelerator.mixed_precision))
        checkpoint_partly(network)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        side, width = latents(), self.unet.config.cross_attention_dim or 0
        x0, noise = torch.randn((2, 1, 4, side, side), generator=generator)
        context = torch.randn((1, TOKENS, width), generator=generator)
        t = torch.randint(1000, (1,), generator=generator)
        return {"x0": x0, "noise": noise, "t": t, "context": context}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x_t = self.scheduler.add_noise(batch["x0"], batch["noise"], batch["t"])
        output = model(x_t, batch["t"], {"context": batch["context"]})
        return (output.float() - batch["noise"]).square().mean(), {}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Nothing to keep."""


class Theirs:
    """The loop of diffusers' train_text_to_image_lora.py; factors as in ``like``, if given."""

    def __init__(self, unet: Any, precision: str, like: Learning | None = None) -> None:
        import diffusers
        import peft
        from diffusers.training_utils import cast_training_params

        self.precision, self.steps = precision, 0
        unet.requires_grad_(False)
        if precision == "bf16":
            unet.to(torch.bfloat16)
        unet.add_adapter(
            peft.LoraConfig(
                r=RANK,
                lora_alpha=RANK,
                init_lora_weights="gaussian",
                target_modules=list(TARGETS),
            )
        )
        cast_training_params(unet, dtype=torch.float32)
        self.unet = unet.train()
        self.params = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        if like is not None:
            with torch.no_grad():
                for name, value in renamed(like).items():
                    self.params[name].copy_(value)
        self.optimizer = torch.optim.AdamW(
            self.params.values(), lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, eps=1e-8
        )
        self.scheduler = diffusers.DDPMScheduler()

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        noise, t = batch["noise"].to(dtype), batch["t"]
        x_t = self.scheduler.add_noise(batch["x0"].to(dtype), noise, t)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            output = self.unet(x_t, t, batch["context"].to(dtype), return_dict=False)[0]
        return nn.functional.mse_loss(output.float(), noise.float())

    def step(self) -> None:
        """One optimizer step."""
        with torch.enable_grad():
            self.loss(
                Learning.batch(cast("Any", self), 0, step_generator(0, self.steps))
            ).backward()
        nn.utils.clip_grad_norm_(self.params.values(), NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1


def renamed(recipe: Learning) -> dict[str, nn.Parameter]:
    """Return our factors by peft's names."""
    roles = {"down": "lora_A", "up": "lora_B"}
    (adapters,) = cast("dict[str, Adapters]", recipe.model.parts).values()
    return {
        f"{path}.{roles[role]}.default.weight": value
        for path, adapter in adapters.items()
        for role, value in adapter.factors.items()
    }


class Ours:
    """Our loop on a U-Net."""

    def __init__(self, unet: UNet, precision: str) -> None:
        self.recipe, self.folder = Learning(unet), tempfile.TemporaryDirectory()
        config = TrainConfig(
            recipe="",
            data="",
            output=self.folder.name,
            steps=NEVER,
            batch_size=1,
            learning_rate=RATE,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=NORM,
            mixed_precision=precision,
            ema_decay=0.0,
            checkpoint_minutes=NEVER,
            sample_every=NEVER,
            log_every=NEVER,
        )
        self.loop = train_steps(config, self.recipe)

    def step(self) -> None:
        """One optimizer step."""
        with torch.enable_grad():
            next(self.loop)

    def close(self) -> dict[str, str]:
        """End the run."""
        self.loop.close()
        self.folder.cleanup()
        return {}


def apart(ours: Learning, theirs: Theirs) -> float:
    """By how much a step's loss or gradients differ, in parts of the largest."""
    batch = ours.batch(0, step_generator(0, 0))
    enabled = theirs.precision == "bf16"
    with torch.enable_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = ours.loss(ours.model, batch)[0]
        other = theirs.loss(batch)
        loss.backward(), other.backward()
    scale = max(p.grad.abs().max() for p in theirs.params.values())
    worst = max(
        float((p.grad - theirs.params[name].grad).abs().max() / scale)
        for name, p in renamed(ours).items()
    )
    ours.model.zero_grad()
    theirs.unet.zero_grad()
    return max(abs(float(loss) / float(other) - 1), worst)


def time(precision: str) -> Race:
    """Race steps in one format."""
    mine, peer = pair("unet")
    ours = Ours(cast("UNet", mine), precision)
    theirs = Theirs(peer, precision, ours.recipe)

    def check() -> tuple[float, float]:
        return apart(ours.recipe, theirs), at(1, 5) * ALIKE[precision]  # narrow layers round more

    what = f"LoRA training step, SD 1.5, {latents()}x{latents()}, batch 1, {FORMATS[precision]}"
    return Race(what, ours.step, theirs.step, check, 1.25, turns=3, more=ours.close)


def memory(precision: str) -> Race:
    """Compare the peak memory of processes while they train."""
    what = f"LoRA training step, SD 1.5, {latents()}x{latents()}, {FORMATS[precision]}: peak, MB"

    def measure(which: str) -> float:
        return float(python("-m", "tools.bench.lora", which, precision))

    return Race(
        what,
        lambda: measure("ours"),
        lambda: measure("theirs"),
        lambda: (0.0, 0.0),  # the race above compares the outcomes
        1 / 0.8,
        turns=1,
        measured=True,
    )


def learner(which: str, precision: str) -> Ours | Theirs:
    """Make one of the two, on random weights."""
    config = family("sd1").unet
    if which == "ours":
        with torch.device("meta"):
            unet = UNet(config)
        return Ours(cast("UNet", fill(unet)), precision)
    import diffusers

    with torch.device("meta"):
        peer = diffusers.UNet2DConditionModel.from_config(config.to_dict())
    return Theirs(fill(peer), precision)


def peak_of_steps(step: Callable[[], None], steps: int) -> float:
    """MB that the process holds at most in some steps, after a first one (Linux)."""
    step()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak until now
    for _ in range(steps):
        step()
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line for line in lines if line.startswith("VmHWM"))
    return float(peak.split()[1]) * 1024 / 1e6


SECTIONS: dict[str, Callable[[], Race]] = {
    "lora-fp32": partial(time, "no"),
    "lora-bf16": partial(time, "bf16"),
    "lora-memory-fp32": partial(memory, "no"),
    "lora-memory-bf16": partial(memory, "bf16"),
}

if __name__ == "__main__":
    print(peak_of_steps(learner(*sys.argv[1:]).step, STEPS))
