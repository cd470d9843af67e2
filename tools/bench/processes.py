"""Whole processes: import, load, and prompt to PNG from nothing."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.checkpoints.assets import asset_path
from ldm.cli.allocator import OPT_OUT
from ldm.config import read_json
from ldm.errors import LDMError
from tools.bench.race import Race
from tools.bench.sizes import at, family, tiny

ROOT = Path(__file__).parents[2]
PROMPT, SEED = "a red car", 1
COLD = """
import sys, torch
from diffusers import StableDiffusionPipeline
folder, prompt, steps, scale, seed, output = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipe(prompt, num_inference_steps=int(steps), guidance_scale=float(scale),
     generator=torch.Generator().manual_seed(int(seed))).images[0].save(output)
"""
LOAD_OURS = """
from ldm.pipeline import Pipeline
began = time.perf_counter()
pipe = Pipeline.from_pretrained(sys.argv[1], device="cpu", dtype="bfloat16")
"""
LOAD_THEIRS = """
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers import DDIMScheduler
from transformers import CLIPTextModel, CLIPTokenizer
began = time.perf_counter()
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
"""
LOAD = """
import json, sys, time
import torch
{load}
taken = time.perf_counter() - began
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
total = sum(p.double().abs().sum().item() for m in (pipe.unet, pipe.vae, pipe.text_encoder)
            for p in list(m.parameters())[:40])
print(json.dumps([taken, int(peak) / 1024, total]))
"""


@functools.cache
def work() -> Path:
    """Return the folder of what is made once: not in git; tiny ones go with this process."""
    if not tiny():
        return ROOT / "runs" / "bench"
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


def inside(*arguments: str) -> str:
    """Run Python in this process, which has the libraries imported; return what it prints."""
    before, printed = sys.argv, io.TextIOWrapper(io.BytesIO())
    flag, what, *rest = arguments
    sys.argv = [what, *rest]
    try:
        with contextlib.redirect_stdout(printed):
            if flag == "-c":
                exec(what, {"__name__": "__main__"})  # one of the scripts above
            else:
                runpy.run_module(what, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise LDMError(f"a run failed: {what} ended with {end.code}") from end
    finally:
        sys.argv = before
    printed.flush()
    return printed.buffer.getvalue().decode()


def python(*arguments: str) -> str:
    """Return the last line that Python prints. Raises LDMError with its last line of errors."""
    if tiny():
        return (inside(*arguments).strip().splitlines() or [""])[-1]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop(OPT_OUT, None)
    # With it, Python would compile our sources at each start, but not the installed peer's.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise LDMError(f"a run failed: {lines[-1]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def imports() -> Race:
    """Race the import of the pipeline class."""
    return Race(
        "import of the pipeline class",
        lambda: python("-c", "from ldm.pipeline import Pipeline"),
        lambda: python("-c", "from diffusers import StableDiffusionPipeline"),
        lambda: (0.0, 0.0),
        2.4,
        turns=5,
    )


def cold() -> Race:
    """Race a prompt to a PNG, from a cold start."""
    folder = asset_path("weights")
    made = Path(tempfile.mkdtemp())
    ours, theirs = made / "ours.png", made / "theirs.png"
    steps = str(at(20, 2))
    scale = str(read_json(folder / "generation_config.json")["guidance_scale"])

    def call_ours() -> None:
        python(
            *("-m", "ldm.cli.generate", PROMPT, "--seed", str(SEED), "--steps", steps),
            *(
                "--dtype",
                "float32",
                "--guidance-scale",
                scale,
                "--output",
                str(ours),
                "--force",
                "--quiet",
            ),
        )

    def call_theirs() -> None:
        python("-c", COLD, str(folder), PROMPT, steps, scale, str(SEED), str(theirs))

    def check() -> tuple[float, float]:
        call_ours()
        call_theirs()
        a, b = (np.asarray(Image.open(path)).astype(int) for path in (ours, theirs))
        return float(np.abs(a - b).max()), 1.0

    return Race(
        f"prompt to PNG, a process, {steps} steps, float32", call_ours, call_theirs, check, 2.0
    )


def loading(which: int, what: str, goal: float) -> Race:
    """Stable Diffusion 1.5's sizes, in float16 files, used in bfloat16."""
    folder = sd15()
    scripts = [LOAD.format(load=part) for part in (LOAD_OURS, LOAD_THEIRS)]

    def measure(script: str, index: int = which) -> float:
        return json.loads(python("-c", script, str(folder)))[index]

    def check() -> tuple[float, float]:
        ours, theirs = (measure(script, 2) for script in scripts)
        return abs(ours - theirs) / theirs, 0.5  # the modules stand in another order

    return Race(
        what, lambda: measure(scripts[0]), lambda: measure(scripts[1]), check, goal, measured=True
    )


def load() -> Race:
    """Seconds to ready, without imports."""
    return loading(0, "load, SD 1.5, fp16 files as bf16", 2.0)


def load_memory() -> Race:
    """Peak memory of the process, with imports."""
    return loading(1, "load, peak memory, MB", 1 / 0.7)


def sd15() -> Path:
    """Make, once, a folder with a randomly initialised model of Stable Diffusion 1.5's sizes."""
    folder = work() / "sd15"
    if (folder / "model_index.json").exists():
        return folder
    import torch

    from ldm.clip import CLIPTextEncoder
    from ldm.pipeline import Pipeline
    from ldm.text.tokenizer import CLIPTokenizer
    from ldm.unet import UNet
    from ldm.vae import AutoencoderKL

    model = family("sd1")
    words = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
    text = CLIPTextEncoder(model.texts[0].config)
    pipe = Pipeline(AutoencoderKL(model.vae), text, words, UNet(model.unet))
    pipe.save_pretrained(folder, torch.float16)
    return folder
