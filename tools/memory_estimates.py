"""Estimated memory beside measured: each case in a process of its own.

    python -m tools.memory_estimates                 # the table
    python -m tools.memory_estimates --only builtin  # cases with this in their names

What is measured is the most that the process held while it drew (VmHWM, reset before), above what
it held after a first small picture, in which weights are packed and libraries load. "tensors" maps
blocks one by one, as ``ldm`` does where memory is short: that is what is estimated. "usual" is with
the C library's heap, which keeps freed blocks where there is enough. The models "half sd1" and
"half sdxl" have half the widths of Stable Diffusion's, and random weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.family import read_family
from ldm.checkpoints.folder import empty
from ldm.cli.allocator import keep_memory
from ldm.cli.common import EXIT_CODES, run
from ldm.cli.parsing import Parser
from ldm.clip import CLIPTextEncoder
from ldm.memory.thrift import be_thrifty
from ldm.pipeline import Pipeline
from ldm.text.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from tools.bench.models import fill

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STEPS, LAYERS = 2, 2  # of a run, of the text encoders


@dataclass(frozen=True)
class Case:
    """A run to measure."""

    model: str
    dtype: str
    side: int
    count: int = 1
    optimize: bool = True
    guided: bool = True
    image: bool = False

    def __str__(self) -> str:
        words = [self.model, self.dtype, "optimized" if self.optimize else "plain"]
        words += [f"{self.side}x{self.side}", f"{self.count} at once"]
        words += ["unguided"] * (not self.guided) + ["image"] * self.image
        return ", ".join(words)


BF16, FP32 = "bfloat16", "float32"
CASES = [
    Case("builtin", BF16, 256, 8),
    Case("builtin", BF16, 512, 1),
    Case("builtin", BF16, 1024, 1),
    Case("builtin", BF16, 1536, 1),
    Case("builtin", FP32, 512, 4),
    Case("builtin", FP32, 1024, 1, optimize=False),
    Case("builtin", BF16, 512, 8, guided=False),
    Case("builtin", BF16, 512, 8),  # two calls of eight rows
    Case("builtin", BF16, 1024, 4),  # four of two
    Case("builtin", BF16, 1024, 1, image=True),
    Case("half sd1", BF16, 512, 1),
    Case("half sd1", BF16, 768, 4),
    Case("half sd1", BF16, 512, 4, optimize=False),
    Case("half sd1", FP32, 512, 1),
    Case("half sd1", FP32, 768, 1, optimize=False),
    Case("half sd1", BF16, 512, 8, guided=False),
    Case("half sd1", BF16, 768, 1, optimize=False, image=True),
    Case("half sdxl", BF16, 1024, 1),
    Case("half sdxl", FP32, 768, 1, optimize=False),
]


def make(name: str, dtype: str) -> Pipeline:
    """Make the model of a case."""
    if name == "builtin":
        return Pipeline.from_pretrained(device="cpu", dtype=dtype)
    family, to = read_family(name.removeprefix("half ")), getattr(torch, dtype)

    def built(kind: type, config: object) -> torch.nn.Module:
        return fill(empty(kind, config).to(to))  # type: ignore[arg-type, type-var]

    unet, vae = (
        replace(config, block_out_channels=tuple(w // 2 for w in config.block_out_channels))
        for config in (family.unet, family.vae)
    )
    parts = {"unet": built(UNet, unet), "vae": built(AutoencoderKL, vae)}
    for text in family.texts:
        parts[text.part] = built(CLIPTextEncoder, replace(text.config, num_hidden_layers=LAYERS))
        vocabulary = asset_path("weights") / "tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(vocabulary, pad_token=text.pad_token)
        parts[text.part.replace("text_encoder", "tokenizer")] = tokenizer  # type: ignore[assignment]
    for name in ("text_encoder", "tokenizer"):
        parts.setdefault(name, None)  # type: ignore[arg-type]
    return Pipeline(**parts)  # type: ignore[arg-type]


def status(field: str) -> int:
    """Return bytes of a line of /proc/self/status."""
    lines = (line.split() for line in STATUS.read_text().splitlines())
    return next(int(line[1]) * 1024 for line in lines if line[0] == f"{field}:")


def measure(case: Case, usual: bool) -> tuple[int, int]:
    """Return the bytes that a run is estimated to take, and that it took."""
    keep_memory() if usual else be_thrifty()
    pipe = make(case.model, case.dtype)
    if case.optimize:
        pipe.optimize()
    scale = 5.0 if case.guided else 1.0

    def draw(side: int, count: int) -> None:
        options: dict[str, object] = {"height": side, "width": side}
        if case.image:
            options["image"] = torch.zeros(1, 3, side, side)
            options["strength"] = 1.0
        pipe("a red car", num_images_per_prompt=count, seed=1, guidance_scale=scale,
             num_inference_steps=STEPS, progress_bar=False, **options)  # fmt: skip

    draw(64, 1)
    gc.collect()
    needed = pipe.memory_needed(
        case.side, case.side, case.count, guidance_scale=scale, image=case.image
    )
    before = status("VmRSS")
    CLEAR.write_text("5")
    draw(case.side, case.count)
    return needed.missing, status("VmHWM") - before


def in_process(case: Case, usual: bool) -> tuple[int, int]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "tools.memory_estimates", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command + ["--usual"] * usual, capture_output=True, text=True, check=True)
    estimated, taken = json.loads(done.stdout.splitlines()[-1])
    return estimated, taken


def table(arguments: argparse.Namespace) -> None:
    """Print a row for each case."""
    if arguments.case is not None:
        print(json.dumps(measure(Case(**json.loads(arguments.case)), arguments.usual)))
        return
    print("| case | estimated, MB | tensors, MB | ratio | usual, MB |\n|---|---|---|---|---|")
    for case in CASES:
        if arguments.only and not all(word in str(case) for word in arguments.only):
            continue
        estimated, taken = in_process(case, False)
        _, usual = in_process(case, True) if arguments.usual else (0, 0)
        row = f"| {case} | {estimated / 1e6:.0f} | {taken / 1e6:.0f} | {estimated / taken:.2f} | "
        print(f"{row}{f'{usual / 1e6:.0f}' if usual else ''} |", flush=True)


def main() -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m tools.memory_estimates",
        description=__doc__.splitlines()[0],
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    add("--only", action="append", metavar="TEXT", help="only cases with all of these in the name")
    add("--usual", action="store_true", help="also measure with the C library's usual heap")
    add("--case", metavar="JSON", help="measure one case in this process")
    add("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()
    return run(lambda: table(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
