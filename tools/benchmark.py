"""Time and memory of `ldm-generate` beside diffusers on the same model folder, as whole processes.

    python tools/benchmark.py --model weights --runs 5

Both start from nothing, draw one picture of the same prompt and seed, with the same sampler, steps,
guidance, precision and number of threads, and save it. They take turns after a warm-up each, so
that a machine that is busy now and idle later treats them alike; where it is busy with other work,
trust CPU time. Needs diffusers and transformers (the extra `test`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.assets import asset_path
from ldm.cli.common import EXIT_CODES, Parser, run
from ldm.config import read_json
from ldm.errors import LDMError

ROOT = Path(__file__).parents[1]
PROMPT, SEED = "a red car", 1

# Each script prints, after each of its phases, the seconds since it was asked for and of CPU.
HEAD = """
import json, os, sys, time
folder, prompt, steps, scale, seed, output = sys.argv[1:]
marks = []
mark = lambda: marks.append((time.monotonic() - float(os.environ["BEGAN"]), time.process_time()))
mark()
import torch
mark()
"""
OURS = """
import ldm.images, ldm.metadata
from ldm.pipeline import Pipeline
mark()
pipe = Pipeline.from_pretrained(folder)
mark()
image = pipe(prompt, num_inference_steps=int(steps), guidance_scale=float(scale),
             seed=int(seed)).images[0]
mark()
ldm.images.save_image(image, output, overwrite=True)
"""
THEIRS = """
from diffusers import StableDiffusionPipeline
mark()
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
mark()
image = pipe(prompt, num_inference_steps=int(steps), guidance_scale=float(scale),
             generator=torch.Generator().manual_seed(int(seed))).images[0]
mark()
image.save(output)
"""
TAIL = """
mark()
print(json.dumps(marks))
"""
PHASES = ["start Python", "import torch", "import the rest", "load", "draw", "save", "end"]


@dataclass
class Run:
    """What a process took."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, all threads
    memory: float  # MB, resident at its peak
    out: str  # its standard output


def measure(command: list[str], threads: int) -> Run:
    """Run a command to its end. Raises LDMError with the end of what it said if it fails."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "MKL_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.monotonic()
        environment["BEGAN"] = str(began)
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        # Peak memory counts from this small process on, which is why it imports no torch.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            err.seek(0)
            said = err.read().strip().splitlines() or ["it said nothing"]
            raise LDMError(f"a run failed: {said[-1]}")
        out.seek(0)
        kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        return Run(wall, usage.ru_utime + usage.ru_stime, kilobytes / 1024, out.read())


def race(commands: dict[str, list[str]], runs: int, threads: int) -> dict[str, list[Run]]:
    """Run the commands in turns, each `runs` times after a warm-up that fills the disk's cache."""
    taken: dict[str, list[Run]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            one = measure(command, threads)
            print(f"{name}: {one.wall:.2f} s", file=sys.stderr, flush=True)
            if turn:
                taken[name].append(one)
    return taken


def race_table(taken: dict[str, list[Run]]) -> Iterator[str]:
    """Medians of wall time, CPU time and peak memory, and the ratios of ours to theirs."""
    yield "| | wall s, median | min | spread | CPU s | peak MB |"
    yield "|---|---|---|---|---|---|"
    rows = []
    for name, runs in taken.items():
        walls = [run.wall for run in runs]
        cpu, memory = (
            statistics.median(getattr(run, of) for run in runs) for of in ("cpu", "memory")
        )
        rows.append((statistics.median(walls), min(walls), cpu, memory))
        wall, least = rows[-1][:2]
        spread = (max(walls) - least) / wall
        yield f"| {name} | {wall:.2f} | {least:.2f} | {spread:.0%} | {cpu:.2f} | {memory:.0f} |"
    wall, least, cpu, memory = (ours / theirs for ours, theirs in zip(*rows, strict=True))
    yield f"| **ratio** | **{wall:.2f}** | {least:.2f} | | {cpu:.2f} | **{memory:.2f}** |"


def phase_table(runs: dict[str, Run]) -> Iterator[str]:
    """Where the time of a run went: wall, and CPU in brackets."""
    yield f"| one run, wall (CPU) s | {' | '.join(PHASES)} |"
    yield "|---" * (len(PHASES) + 1) + "|"
    for name, one in runs.items():
        marks = [(0.0, 0.0), *json.loads(one.out.splitlines()[-1]), (one.wall, one.cpu)]
        parts = [f"{b[0] - a[0]:.2f} ({b[1] - a[1]:.2f})" for a, b in pairwise(marks)]
        yield f"| {name} | {' | '.join(parts)} |"


def machine() -> str:
    """Processor, load and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    packages = ", ".join(f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers"))
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {packages}"
    )


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure both, compare the pictures, print."""
    folder, threads = arguments.model.resolve(), arguments.threads
    advised = read_json(folder / "generation_config.json", optional=True)
    steps = arguments.steps or advised.get("num_inference_steps", 50)
    scale = advised.get("guidance_scale", 7.5)
    with tempfile.TemporaryDirectory() as work:
        ours, theirs = f"{work}/ours.png", f"{work}/theirs.png"
        settings = [str(folder), PROMPT, str(steps), str(scale), str(SEED)]
        script = [sys.executable, "-c"]
        command = [sys.executable, "-m", "ldm.cli.generate", PROMPT, "--model", str(folder)]
        command += ["--steps", str(steps), "--guidance-scale", str(scale), "--seed", str(SEED)]
        command += ["--output", ours, "--force"]
        reference = [*script, HEAD + THEIRS + TAIL, *settings, theirs]
        taken = race({"ldm-generate": command, "diffusers": reference}, arguments.runs, threads)
        a, b = (np.asarray(Image.open(path)).astype(int) for path in (ours, theirs))
        split = [*script, HEAD + OURS + TAIL, *settings, ours]
        phases = {"ldm, in Python": measure(split, threads), "diffusers": taken["diffusers"][-1]}

    print(f"{machine()}; {threads} threads")
    print(f"{folder}: {PROMPT!r}, {steps} steps, guidance {scale}, {b.shape[1]}x{b.shape[0]}\n")
    print("\n".join([*race_table(taken), "", *phase_table(phases)]))
    print(f"\nThe pictures differ by at most {np.abs(a - b).max()} of 255.")


def main() -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument(
        "--model", type=Path, default=asset_path("weights"), help="a diffusers folder"
    )
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each (default: 5)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: as the model advises)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()
    return run(lambda: benchmark(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
