"""Train the adapters of the built-in model beside a U-Net that `train` has made.

Each is a recipe of `configs/train`, on pictures that are composed once for all of them. It begins
with the adapter in `weights/` if the U-Net has the layers of the one there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from ldm.checkpoints.assets import asset_path
from ldm.cli.common import notify
from ldm.cli.train import progress
from ldm.config import read_json
from ldm.errors import ArgumentError
from ldm.training.config import read_config
from ldm.training.loop import train_steps
from ldm.training.recipes import build_recipe
from tools.builtin_model.compose import compose, read_vocabulary
from tools.builtin_model.parts import put_in_place
from tools.builtin_model.supply import one_thread_each

BASE = ("vae", "text_encoder", "tokenizer", "scheduler", "image_encoder", "model_index.json")
PICTURES, SIZE = 30_000, 128  # composed for them, and the px of a side
HELD_OUT = 256  # of the composed pictures, the last ones
LOG_EVERY = 20  # steps


@dataclass(frozen=True)
class Adapter:
    """One adapter of `weights/`: its folder's and its config's name, and how it is trained."""

    name: str
    share: float  # of the minutes
    start: str  # what of its folder training begins with
    settings: tuple[str, ...] = ()  # as of `ldm train --set`


ADAPTERS = (
    Adapter(
        "lcm_lora",
        0.4,
        "lcm_lora/pytorch_lora_weights.safetensors",
        (
            *('options.save_as="diffusers"', "options.save_dtype='float16'"),
            # As the shipped one learnt at last: the first two parts would undo it.
            *('options.objective="tcd"', "options.phases=4", "options.num_ddim_timesteps=50"),
        ),
    ),
    Adapter("controlnet", 0.4, "controlnet"),
    Adapter("ip_adapter", 0.2, "ip_adapter"),
)


@dataclass(frozen=True)
class Task:
    """The command line of `train --train adapters`."""

    output: Path  # of the run, which has unet/ and gets a folder of each adapter
    state: Path  # of what is only needed while training
    weights: Path
    archives: Path
    seconds: float
    workers: int  # processes that compose
    seed: int


def train_adapters(task: Task, began: float, stop: Callable[[], bool]) -> None:
    """Train all adapters, each for its share of the time that is left, and keep what each has.

    began: what ``time.monotonic`` returned when the command began, which counts.
    An adapter that has done its steps is left as it is, so the same command resumes.
    Raises ArgumentError where `task.output` has no U-Net yet.
    """
    unet = task.output / "unet"
    if not (unet / "config.json").is_file():
        raise ArgumentError(
            f"{task.output} has no unet/; train one first: the same command without --train"
        )
    base = link_base(task, unet)
    data = task.state / "composed"
    if not data.is_dir():
        write_composed(task, data)
    known = task.weights / "unet" / "config.json"
    same = known.is_file() and read_json(unet / "config.json") == read_json(known)
    left = sum(adapter.share for adapter in ADAPTERS)
    for adapter in ADAPTERS:
        seconds = task.seconds - (time.monotonic() - began)
        end = time.monotonic() + seconds * adapter.share / left
        left -= adapter.share
        train_one(task, adapter, base, data, same, lambda end=end: stop() or time.monotonic() > end)
        if stop():
            return


def link_base(task: Task, unet: Path) -> Path:
    """Make a model's folder of links: this U-Net with the other parts of `weights/`."""
    base = task.state / "base"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    for name in BASE:
        (base / name).symlink_to((task.weights / name).resolve())
    (base / "unet").symlink_to(unet.resolve())
    return base


def train_one(
    task: Task, adapter: Adapter, base: Path, data: Path, same: bool, stop: Callable[[], bool]
) -> None:
    """Run an adapter's recipe until its steps are done or `stop` says so.

    same: whether the U-Net has the layers that the adapter in `weights/` was made for.
    """
    run = task.state / "adapters" / adapter.name
    values = {"data": data, "output": run, "options.base": base}
    if adapter.name == "ip_adapter":
        values["options.image_encoder"] = base / "image_encoder"
    if same:
        values["start"] = task.weights / adapter.start
    settings = [f"{key}={json.dumps(str(value))}" for key, value in values.items()]
    settings += [f"log_every={LOG_EVERY}", f"seed={task.seed}", *adapter.settings]
    file = asset_path("configs") / "train" / f"{adapter.name}.toml"
    config = read_config(str(file), settings)
    torch.manual_seed(config.seed)
    done = config.steps
    for state in train_steps(config, build_recipe(config)):
        if state.metrics:
            print(f"{adapter.name}: {progress(state, config.steps)}", flush=True)
        state.stop, done = stop(), state.step
    if done < config.steps:
        notify(f"{adapter.name} has done {done} of {config.steps} steps: its time was over")
    partial = task.output / f".{adapter.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    product = run / adapter.name
    if product.is_dir():
        shutil.copytree(product, partial)
    else:  # a LoRA's file, which lies beside the run's other files
        partial.mkdir()
        shutil.copy(run / Path(adapter.start).name, partial)
    put_in_place(partial, task.output / adapter.name)


def write_composed(task: Task, folder: Path) -> None:
    """Compose PICTURES pictures into a data set's folder, which appears whole."""
    notify(f"composing {PICTURES} pictures, once")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shape = (PICTURES, SIZE, SIZE, 3)
    np.lib.format.open_memmap(partial / "images.npy", "w+", np.uint8, shape).flush()
    bounds = np.linspace(0, PICTURES, task.workers + 1).astype(int).tolist()
    parts = [
        (partial / "images.npy", task.archives, task.seed, worker, *bounds[worker : worker + 2])
        for worker in range(task.workers)
    ]
    with one_thread_each(), get_context("spawn").Pool(task.workers) as pool:
        captions = [caption for part in pool.starmap(write_part, parts) for caption in part]
    kept = len(captions) - HELD_OUT
    rows = (
        {"caption": caption, "split": "train" if i < kept else "held_out"}
        for i, caption in enumerate(captions)
    )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (partial / "metadata.jsonl").write_text(text)
    partial.rename(folder)


def write_part(
    file: Path, archives: Path, seed: int, worker: int, start: int, end: int
) -> list[str]:
    """Compose the pictures from `start` to `end` of a data set; returns their captions."""
    images = np.load(file, mmap_mode="r+")
    endless = compose(read_vocabulary(archives), images.shape[1], seed, worker)
    captions = []
    for index, (picture, caption) in zip(range(start, end), endless, strict=False):
        images[index] = picture
        captions.append(caption)
    return captions
