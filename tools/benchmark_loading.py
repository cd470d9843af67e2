"""Time and memory until a model of Stable Diffusion 1.5's size is ready, beside diffusers.

    python tools/benchmark_loading.py --work runs/loading

Makes folders of random weights of full size in float32 and float16, and the same as single files,
once (13 GB in all). Each measurement is a process of its own, in turns, after one that warms the
disk's cache; imports are left out of the time. `ldm-info` reads the header of the single file of
4.3 GB. Needs diffusers and transformers.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import benchmark
from ldm.cli.common import EXIT_CODES, Parser, run

MAKE = """
import sys, torch
from ldm.checkpoints.family import read_family
from ldm.clip import CLIPTextEncoder
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.tokenizer import CLIPTokenizer
from ldm.assets import asset_path
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
family = read_family("sd1")
words = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
pipe = Pipeline(AutoencoderKL(family.vae), CLIPTextEncoder(family.texts[0].config), words,
                UNet(family.unet), DDPMScheduler(family.scheduler))
for dtype in ("float32", "float16"):
    pipe.save_pretrained(f"{sys.argv[1]}/{dtype}", getattr(torch, dtype))
    pipe.save_single_file(f"{sys.argv[1]}/{dtype}.safetensors", getattr(torch, dtype))
"""
CASES = (("float32", "float32"), ("float32", "bfloat16"), ("float16", "float32"))  # file, in use
HEAD = """
import json, resource, sys, time
import torch
"""
OURS = """
from ldm.pipeline import Pipeline
began = time.monotonic()
pipe = Pipeline.from_pretrained(sys.argv[1], device="cpu", dtype=torch.{dtype})
"""
THEIRS = """
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
began = time.monotonic()
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.{dtype})
"""
TAIL = """
taken = time.monotonic() - began
print(json.dumps([taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def loading(arguments: argparse.Namespace) -> None:
    """Make the files where they are missing, measure, print."""
    big = arguments.work / "float32.safetensors"
    if not (arguments.work / "float16.safetensors").exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        benchmark.measure([sys.executable, "-c", MAKE, str(arguments.work)], 2)
    print(f"{benchmark.machine()}; {big.stat().st_size / 1e9:.2f} GB in float32, medians\n")
    print("| | seconds to ready | peak MB |\n|---|---|---|")
    for stored, dtype in CASES:
        ours, theirs = (HEAD + part.format(dtype=dtype) + TAIL for part in (OURS, THEIRS))
        folder = arguments.work / stored
        told = stored if stored == dtype else f"{stored} as {dtype}"
        rows = {
            f"diffusers, folder, {told}": (theirs, folder),
            f"ldm, folder, {told}": (ours, folder),
            f"ldm, single file, {told}": (ours, folder.with_suffix(".safetensors")),
        }
        commands = {
            name: [sys.executable, "-c", script, str(path)] for name, (script, path) in rows.items()
        }
        base = None
        for name, runs in benchmark.race(commands, arguments.runs, arguments.threads).items():
            taken = [json.loads(run.out.splitlines()[-1]) for run in runs]
            seconds, memory = (statistics.median(column) for column in zip(*taken, strict=True))
            base = base or (seconds, memory)
            print(
                f"| {name} | {seconds:.2f} ({seconds / base[0]:.2f}) "
                f"| {memory:.0f} ({memory / base[1]:.2f}) |"
            )
    command = [sys.executable, "-m", "ldm.cli.info", str(big)]
    benchmark.measure(command, arguments.threads)
    one = benchmark.measure(command, arguments.threads)
    print(f"| ldm-info, whole process | {one.wall:.2f} | {one.memory:.0f} |")


def main() -> int:
    """Entry point; returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--work", type=Path, default=Path("runs/loading"), help="for the files")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=2, help="of each process (default: 2)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()
    return run(lambda: loading(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
