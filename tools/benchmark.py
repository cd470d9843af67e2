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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PROMPT, SEED = "a red car", 1

# Each script prints the seconds since its process was asked for, after each of its phases.
HEAD = """
import json, sys, time
began, (folder, prompt, steps, scale, seed, output) = float(sys.argv[1]), sys.argv[2:]
marks = []
mark = lambda: marks.append(time.monotonic() - began)
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
image = pipe(prompt, num_inference_steps=int(steps), guidance_scale=float(scale), seed=int(seed)).images[0]
mark()
ldm.images.save_image(image, output, overwrite=True)
"""  # noqa: E501
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
PHASES = ["start Python", "import torch", "import the rest", "load", "draw", "save"]


@dataclass
class Run:
    """What a process took."""

    wall: float  # seconds
    cpu: float  # seconds, user and system, all threads
    memory: float  # MB, resident at its peak
    out: str  # its standard output


def measure(command: list[str], threads: int) -> Run:
    """Run a command to its end. Raises SystemExit with what it said if it fails."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "MKL_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.monotonic()
        process = subprocess.Popen(
            [part if part != "BEGAN" else str(began) for part in command],
            stdout=out,
            stderr=err,
            env=environment,
        )
        # Peak memory counts from this small process on, which is why it imports no torch.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            err.seek(0)
            raise SystemExit(f"{' '.join(command[:4])} … failed:\n{err.read()[-2000:]}")
        out.seek(0)
        kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
        return Run(wall, usage.ru_utime + usage.ru_stime, kilobytes / 1024, out.read())


def row(name: str, runs: list[Run]) -> str:
    """A line of the table: medians, and how far the wall times lie apart."""
    walls = [run.wall for run in runs]
    middle = statistics.median(walls)
    return (
        f"| {name} | {middle:.2f} | {min(walls):.2f} | {(max(walls) - min(walls)) / middle:.0%} | "
        f"{statistics.median(run.cpu for run in runs):.2f} | "
        f"{statistics.median(run.memory for run in runs):.0f} |"
    )


def ratios(ours: list[Run], theirs: list[Run]) -> str:
    """A line of the table: ours / theirs."""

    def ratio(of: str, middle: object = statistics.median) -> str:
        return f"{middle([vars(r)[of] for r in ours]) / middle([vars(r)[of] for r in theirs]):.2f}"

    return (
        f"| ratio | {ratio('wall')} | {ratio('wall', min)} | | {ratio('cpu')} | {ratio('memory')} |"
    )


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measure, compare the pictures, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "weights", help="a diffusers folder")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each (default: 5)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: as the model advises)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both")
    arguments = parser.parse_args()
    folder = str(arguments.model.resolve())
    advice = arguments.model / "generation_config.json"
    advised = json.loads(advice.read_text()) if advice.exists() else {}
    steps = arguments.steps or advised.get("num_inference_steps", 50)
    scale = advised.get("guidance_scale", 7.5)

    with tempfile.TemporaryDirectory() as work:
        pictures = {name: f"{work}/{name}.png" for name in ("ours", "theirs")}
        settings = [folder, PROMPT, str(steps), str(scale), str(SEED)]
        python = [sys.executable, "-c"]
        phases = {
            name: [*python, HEAD + script + TAIL, "BEGAN", *settings, pictures[name]]
            for name, script in (("ours", OURS), ("theirs", THEIRS))
        }
        ours = [sys.executable, "-m", "ldm.cli.generate", PROMPT, "--model", folder]
        ours += ["--steps", str(steps), "--guidance-scale", str(scale), "--seed", str(SEED)]
        ours += ["--output", pictures["ours"], "--force"]
        commands = {"ldm-generate": ours, "diffusers": phases["theirs"]}

        taken: dict[str, list[Run]] = {name: [] for name in commands}
        for turn in range(arguments.runs + 1):
            for name, command in commands.items():
                run = measure(command, arguments.threads)
                print(f"{name}: {run.wall:.2f} s", file=sys.stderr, flush=True)
                if turn:  # the first is the warm-up: files come from the disk
                    taken[name].append(run)
        a, b = (np.asarray(Image.open(path)).astype(int) for path in pictures.values())
        split = {
            "ldm": measure(phases["ours"], arguments.threads),
            "diffusers": taken["diffusers"][-1],
        }

    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers")
    )
    print(f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python "
          f"{platform.python_version()}, {packages}; {arguments.threads} threads")  # fmt: skip
    print(f"{folder}: {PROMPT!r}, {steps} steps, guidance {scale}, {a.shape[1]}x{a.shape[0]}\n")
    print("| | wall s, median | min | spread | CPU s | peak MB |\n|---|---|---|---|---|---|")
    for name, runs in taken.items():
        print(row(name, runs))
    print(ratios(*taken.values()))
    print(f"\n| one run, wall s | {' | '.join(PHASES)} |\n|---|{'---|' * len(PHASES)}")
    for name, run in split.items():
        marks = [0.0, *json.loads(run.out.splitlines()[-1])]
        parts = [f"{end - start:.2f}" for start, end in zip(marks, marks[1:], strict=False)]
        print(f"| {name} | {' | '.join(parts)} |")
    apart = np.abs(a - b).max() if a.shape == b.shape else "other sizes"
    print(f"\nThe pictures differ by at most {apart} of 255.")


if __name__ == "__main__":
    main()
