"""What a run leaves and reads again: its folder is resumed by the trainer, with a toy network."""

from __future__ import annotations

import functools
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save
from torch import nn

from ldm.training.checkpoint import checkpoints
from ldm.training.loop import train_steps
from ldm.training.recipes.cached_latents import CachedLatents
from ldm.training.warm_start import begin_with
from tests.fuzz.reader import Reader
from tests.fuzz.readers.data import encoded
from tests.helpers.garbage import pass_over_modules
from tests.helpers.toy_training import Toy, toy_config

STEPS, ALL = 5, 100  # at the end, curves would be drawn, which takes a second


def train(run: Path, stop: int, accept: bool = False) -> int:
    """Train a toy until a step; returns the steps of this session."""
    AcceleratorState._reset_state()
    config = toy_config(run, steps=ALL, log_every=2)
    torch.manual_seed(0)
    done = 0
    for state in train_steps(config, Toy(config), accept_changes=accept):
        done += 1
        state.stop = state.step == stop
    return done


def begun(folder: Path) -> None:
    """Put a run of two checkpoints there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(folder / "begun", 3)
        train(folder / "begun", STEPS)
    assert len(checkpoints(folder / "begun")) == 2
    pass_over_modules()  # outside of pytest, too: the end of each run collects garbage


def seeds(name: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        begun(Path(folder))
        return [Path(folder, "begun", name).read_bytes()]


def resume(name: str, accept: bool, path: Path) -> None:
    """Resume a copy of the run with one file replaced."""
    run = path.with_name("run")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(path.with_name("begun"), run)
    shutil.copyfile(path, run / name)
    torch.set_num_threads(1)
    steps = train(run, STEPS + 1, accept)
    assert steps == 1


def of_run(name: str, accept: bool = False) -> Reader:
    return Reader(
        f"run: {name}{', changes accepted' if accept else ''}",
        functools.partial(seeds, name),
        functools.partial(resume, name, accept),
        surroundings=begun,
        slow=True,
    )


class Small(nn.Module):
    """A network with an end that may get more channels."""

    weight_stem = "diffusion_pytorch_model"

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 2, 1)
        self.quant_conv = nn.Conv2d(4, 4, 1)


def weights() -> list[bytes]:
    fewer = {"conv_in.weight": torch.ones(2, 3, 1, 1), "conv_in.bias": torch.ones(2)}
    fewer |= {"quant_conv.weight": torch.ones(2, 2, 1, 1), "quant_conv.bias": torch.ones(2)}
    return [save(dict(Small().state_dict())), save(fewer)]


class TinyVAE(nn.Module):
    """Encodes by taking means."""

    class config:
        latent_channels, scale = 3, 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x, 4)


def latents(folder: Path) -> None:
    """Encode a small set, and keep it beside the file."""
    from accelerate import Accelerator

    from ldm.training.data import open_data

    (folder / "set").mkdir(exist_ok=True)
    for i in range(3):
        (folder / "set" / f"{i}.png").write_bytes(encoded("PNG", 8))
    AcceleratorState._reset_state()
    data = open_data(str(folder / "set"), {"size": 8})
    kept = CachedLatents(folder / "latents", TinyVAE(), data, [(8, 8), (4, 8)], flip=False)
    kept.prepare(Accelerator(cpu=True))
    drawn = kept.draw(2, torch.Generator().manual_seed(0))
    assert drawn.latents.shape[1:] in ((3, 2, 2), (3, 1, 2))


def latent_seeds(name: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        latents(Path(folder))
        return [Path(folder, "latents", name).read_bytes()]


def of_latents(name: str) -> Reader:
    return Reader(
        f"latents: {name}",
        functools.partial(latent_seeds, name),
        lambda path: latents(path.parents[1]),
        f"latents/{name}",
        surroundings=latents,
    )


RUNS = [
    of_run("metrics.jsonl"),
    of_run("config.json"),
    of_run("config.json", accept=True),
    of_run("lock"),
    *(of_run(f"checkpoints/{STEPS:08d}/{name}") for name in ("state.json", "model.safetensors")),
    *(of_run(f"checkpoints/{STEPS:08d}/{name}.safetensors") for name in ("ema", "optimizer")),
    Reader(
        "warm start",
        weights,
        lambda path: begin_with(Small(), str(path.parent)),
        "diffusion_pytorch_model.safetensors",
    ),
    *map(of_latents, ("latents.json", "begun.json", "bucket.npy")),
    *map(of_latents, ("8x8.npy", "8x8.readable.npy", "8x8.crops.npy")),
]
