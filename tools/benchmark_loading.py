"""Time and memory until a model of Stable Diffusion 1.5's size is ready, beside diffusers.

    python tools/benchmark_loading.py --work runs/loading

Makes a folder of random bfloat16 weights of full size, and the same as a single file, once (2 GB
each). Each measurement is a process of its own, after one that warms the disk's cache; imports are
left out. `ldm-info` reads the single file's header. Needs diffusers and transformers.
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
torch.set_default_dtype(torch.bfloat16)
words = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
pipe = Pipeline(AutoencoderKL(family.vae), CLIPTextEncoder(family.texts[0].config), words,
                UNet(family.unet), DDPMScheduler(family.scheduler))
pipe.save_pretrained(sys.argv[1])
pipe.save_single_file(sys.argv[2])
"""
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
    folder, single = arguments.work / "sd1", arguments.work / "sd1.safetensors"
    if not single.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        benchmark.measure([sys.executable, "-c", MAKE, str(folder), str(single)], 2)
    print(f"{benchmark.machine()}; {single.stat().st_size / 1e9:.2f} GB, median of each\n")
    print("| | seconds to ready | peak MB |\n|---|---|---|")
    for dtype in ("bfloat16", "float32"):
        ours, theirs = (HEAD + part.format(dtype=dtype) + TAIL for part in (OURS, THEIRS))
        rows = {
            f"diffusers, folder, {dtype}": (theirs, folder),
            f"ldm, folder, {dtype}": (ours, folder),
            f"ldm, single file, {dtype}": (ours, single),
        }
        base = None
        for name, (script, path) in rows.items():
            command = [sys.executable, "-c", script, str(path)]
            benchmark.measure(command, arguments.threads)
            taken = [
                json.loads(benchmark.measure(command, arguments.threads).out.splitlines()[-1])
                for _ in range(arguments.runs)
            ]
            seconds, memory = (statistics.median(column) for column in zip(*taken, strict=True))
            base = base or (seconds, memory)
            print(
                f"| {name} | {seconds:.2f} ({seconds / base[0]:.2f}) "
                f"| {memory:.0f} ({memory / base[1]:.2f}) |"
            )
    command = [sys.executable, "-m", "ldm.cli.info", str(single)]
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
