"""The most memory that a process holds which loads a model from files and draws a picture.

`python -m tools.bench --only peaks` runs these, in bfloat16 from float16 files with random weights.
Memory does not depend on what else the machine does, so one turn is enough. Anonymous memory is
counted: pages of the files, which the system drops when it needs them, are told beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.folder import empty
from ldm.clip import CLIPTextEncoder
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.text.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from tools.bench.models import fill
from tools.bench.processes import python, work
from tools.bench.race import Race
from tools.bench.sizes import at, family

OURS = """
from ldm.cli.allocator import keep_memory
from ldm.memory.thrift import be_thrifty
from ldm.pipeline import Pipeline
be_thrifty() if thrifty else keep_memory()
pipe = Pipeline.from_pretrained(folder, device="cpu", dtype="bfloat16").optimize()
estimated = pipe.memory_needed(side, side)
loaded = held()
pipe("a red car", seed=1, num_inference_steps=steps, height=side, width=side, progress_bar=False)
more = {"estimated": estimated.activations / 1e6, "weights": estimated.weights / 1e6}
"""
THEIRS = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
pipe.set_progress_bar_config(disable=True)
loaded = held()
pipe("a red car", num_inference_steps=steps, height=side, width=side)
more = {}
"""
SCRIPT = """
import json, sys, threading, time
import torch
folder, side, steps, thrifty = sys.argv[1], *map(int, sys.argv[2:5])

def held(field="RssAnon"):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6

most, ended = [0], threading.Event()

def watch():
    while not ended.wait(0.01):
        most[0] = max(most[0], held())

thread = threading.Thread(target=watch)
thread.start()
libraries = held()
try:
    {draw}
finally:
    ended.set()
    thread.join()
print(json.dumps({{"peak": most[0], "with files": held("VmHWM"), "loaded": loaded}} | more))
"""


def folder(name: str) -> Path:
    """Make, once, a folder with a model of a family's sizes: random weights in float16."""
    made = work() / f"{name}-random"
    if (made / "model_index.json").exists():
        return made
    model = family(name)

    def part(kind: type, config: object) -> Any:
        return fill(empty(kind, config).half())

    words = asset_path("weights") / "tokenizer"
    parts: dict[str, Any] = {"text_encoder": None, "tokenizer": None}
    for text in model.texts:
        parts[text.part] = part(CLIPTextEncoder, text.config)
        parts[text.part.replace("text_encoder", "tokenizer")] = CLIPTokenizer.from_pretrained(
            words, pad_token=text.pad_token
        )
    pipe = Pipeline(
        vae=part(AutoencoderKL, model.vae),
        unet=part(UNet, model.unet),
        scheduler=DDPMScheduler(model.scheduler),
        **parts,
    )
    pipe.save_pretrained(made, torch.float16)
    return made


def measure(draw: str, name: str, side: int, thrifty: bool = False) -> dict[str, float]:
    """Return MB of a process that loads and draws."""
    body = draw.strip().replace("\n", "\n    ")
    given = (str(folder(name)), str(side), "1", str(int(thrifty)))
    found: dict[str, float] = json.loads(python("-c", SCRIPT.format(draw=body), *given))
    return found


def peak(name: str, side: int, most: float | None, goal: float) -> Race:
    """Compare the peaks of two processes that draw; most: MB that ours may take, without a peer."""
    side = at(side, 64)
    seen: dict[str, float] = {}

    def call_ours() -> float:
        seen.update(measure(OURS, name, side))
        return seen["peak"]

    def call_theirs() -> float:
        if most is not None:
            return most
        theirs = measure(THEIRS, name, side)
        seen["beside their weights"] = theirs["peak"] - theirs["loaded"]
        return theirs["peak"]

    def more() -> dict[str, Any]:
        return {key: round(value) for key, value in seen.items() if key != "peak"}

    return Race(
        f"load {name} and draw {side} px, fp16 files as bf16: peak of a process, MB",
        call_ours,
        call_theirs,
        lambda: (0.0, 0.0),  # of other noises; other sections compare pictures
        goal,
        "diffusers" if most is None else "the aim",
        turns=1,
        measured=True,
        more=more,
    )


SECTIONS: dict[str, Callable[[], Race]] = {
    "peak-sd1": partial(peak, "sd1", 512, None, 1 / 0.6),
    "peak-sdxl": partial(peak, "sdxl", 1024, 12_000.0, 1.0),
}
