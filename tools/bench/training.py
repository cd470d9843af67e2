"""Training: steps of the built-in model's U-Net, beside a plain diffusers loop.

Ours is `ldm.training.loop` as `ldm-train` runs it; theirs is what one writes with diffusers:
`UNet2DConditionModel`, `torch.optim.AdamW` as it comes, gradients clipped, `EMAModel`. Both learn
v-prediction from the same weights, the same latents, texts' states, noise and times.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.config import SchedulerConfig, UNetConfig
from ldm.fast import adapt_to_cpu
from ldm.scheduler import DDPMScheduler
from ldm.training.config import TrainConfig
from ldm.training.data import step_generator
from ldm.training.foreign import parse_toml
from ldm.training.loop import train_steps
from ldm.training.recipes.base import Recipe
from ldm.unet import UNet
from tools.bench.race import Race
from tools.bench.sizes import WIDTHS, at, tiny

ROOT = Path(__file__).parents[2]
TOKENS = 77
BETAS, WEIGHT_DECAY, RATE, NORM = (0.9, 0.999), 0.01, 1e-4, 1.0
PRECISION = "bf16"  # of ours
LIKE = {"no": 5e-2, "bf16": 3e-2}  # relative difference of loss and gradient, by their precision


def batch_size() -> int:
    """Return the pictures of a step."""
    return at(64, 2)


class Cached(Recipe):
    """The recipe of ldm/training/recipes/latent.py, with made-up latents and texts' states."""

    def __init__(self, settings: dict) -> None:
        torch.manual_seed(0)
        self.model = adapt_to_cpu(UNet(UNetConfig.from_dict(settings["model"])))
        self.scheduler = DDPMScheduler(SchedulerConfig.from_dict(settings["options"]["scheduler"]))
        config = self.model.config
        size, width = config.sample_size or 64, config.cross_attention_dim
        self.x0 = torch.randn(batch_size(), config.in_channels, size, size)
        self.context = torch.randn(batch_size(), TOKENS, width)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        t = torch.randint(1000, (len(self.x0),), generator=generator)
        noise = torch.randn(self.x0.shape, generator=generator)
        return {"x0": self.x0, "noise": noise, "t": t, "context": self.context}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x0, noise, t = batch["x0"], batch["noise"], batch["t"]
        x_t = self.scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        error = model(x_t, t, batch["context"]).float() - self.scheduler.target(x0, noise, t)
        return error.square().mean(), {}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Nothing to keep."""


class Theirs:
    """A plain loop of diffusers' parts, on the same weights."""

    def __init__(self, recipe: Cached, settings: dict, precision: str) -> None:
        import diffusers
        from diffusers.training_utils import EMAModel

        self.recipe, self.precision, self.steps = recipe, precision, 0
        self.model = diffusers.UNet2DConditionModel.from_config(recipe.model.config.to_dict())
        self.model.load_state_dict(copy.deepcopy(recipe.model.state_dict()))
        values = {k: v for k, v in settings["options"]["scheduler"].items() if k[0] != "_"}
        self.scheduler = diffusers.DDPMScheduler.from_config(values)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        self.ema = EMAModel(self.model.parameters())

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x0, noise, t = batch["x0"], batch["noise"], batch["t"]
        x_t = self.scheduler.add_noise(x0, noise, t)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            prediction = self.model(x_t, t, batch["context"]).sample
        target = self.scheduler.get_velocity(x0, noise, t)
        return nn.functional.mse_loss(prediction.float(), target)

    def step(self) -> None:
        """One optimizer step."""
        with torch.enable_grad():
            self.loss(self.recipe.batch(self.steps, step_generator(0, self.steps))).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        self.steps += 1


def ours(recipe: Cached, folder: str) -> Iterator[object]:
    """Our loop; one step for each ``next``."""
    never = 10**9
    config = TrainConfig(
        recipe="",
        data="",
        output=folder,
        steps=never,
        batch_size=batch_size(),
        learning_rate=RATE,
        betas=BETAS,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=NORM,
        mixed_precision=PRECISION,
        checkpoint_minutes=never,
        sample_every=never,
        log_every=never,
    )
    return train_steps(config, recipe)


def apart(recipe: Cached, theirs: Theirs) -> float:
    """By how much the first step's loss or gradient differ, in parts of the largest."""
    batch = recipe.batch(0, step_generator(0, 0))
    with torch.enable_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16"):
            loss = recipe.loss(recipe.model, batch)[0]
        other = theirs.loss(batch)
        loss.backward(), other.backward()
    others = dict(theirs.model.named_parameters())
    scale = max(p.grad.abs().max() for p in others.values())
    worst = max(
        float((p.grad - others[name].grad).abs().max() / scale)
        for name, p in recipe.model.named_parameters()
    )
    for model in (recipe.model, theirs.model):
        model.zero_grad()
    return max(abs(loss.item() / other.item() - 1), worst)


def beside(precision: str, what: str, goal: float) -> Race:
    """Race steps of ours in bfloat16 against theirs."""
    settings = parse_toml((ROOT / "configs/train/latent.toml").read_text(encoding="utf-8"))
    if tiny():
        settings["model"] |= {"block_out_channels": list(WIDTHS[:3]), "attention_head_dim": 1}
    recipe = Cached(settings)
    peer, folder = Theirs(recipe, settings, precision), tempfile.TemporaryDirectory()
    loop = ours(recipe, folder.name)

    def step() -> None:
        with torch.enable_grad():
            next(loop)

    def check() -> tuple[float, float]:
        return apart(recipe, peer), at(1, 3) * LIKE[precision]  # narrow layers round more

    def close() -> dict[str, str]:
        loop.close()
        folder.cleanup()
        return {}

    return Race(what, step, peer.step, check, goal, turns=6, more=close)


def training() -> Race:
    """Both in bfloat16."""
    return beside("bf16", f"training step, batch {batch_size()}, bf16", 1.3)


def training_default() -> Race:
    """Theirs as it comes."""
    return beside(
        "no", f"training step, batch {batch_size()}, bf16 against diffusers' float32", 2.0
    )
