"""Speed and memory of ldm beside diffusers, each section in about a minute on two cores.

    python -m tools.bench                    # all sections of the CPU
    python -m tools.bench --device cuda      # the table of CUDA, in under four minutes
    python -m tools.bench --only unet-fp32 --only sampler-euler

Ours and the peer's take turns after a warm-up each, on the same weights and inputs. The ratio is
the median of the turns' ratios, as each turn's two runs are neighbours in time. Outcomes are
compared first. A line is refused where they differ, where half of the turns' ratios lie 10 % or
more from their median (up to a minute, it tries for less), or where the machine is busy at the
start. A section that fails is a line that says so; what was measured is always written. A bare
product of matrices before and after shows how steady the machine was. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ldm.cli.allocator import OPT_OUT
from ldm.cli.common import EXIT_CODES, notify, run
from ldm.cli.parsing import Parser
from ldm.errors import LDMError
from tools.bench import (
    attention,
    beside,
    control,
    cuda,
    loops,
    lora,
    networks,
    peaks,
    peers,
    processes,
    race,
    samplers,
    scale,
    serve,
    sizes,
    training,
)

SECTIONS: dict[str, Callable[[], race.Race]] = {
    "import": processes.imports,
    "cold": processes.cold,
    **loops.warm(1, 2.0),
    **loops.warm(8, 1.5),
    "unet-bf16": networks.unet_bf16,
    "unet-default": networks.unet_default,
    "unet-fp32": networks.unet_fp32,
    "vae": networks.vae,
    "vae-memory": networks.vae_memory,
    "load": processes.load,
    "load-memory": processes.load_memory,
    "sampler": partial(samplers.sampler, "dpmpp_2m"),
    "interval": loops.interval,
    "deep-cache": loops.deep_cache,
    "int8": networks.int8,
    "int8-bf16": networks.int8_bf16,
    "training": training.training,
    "training-default": training.training_default,
    **control.SECTIONS,
    **lora.SECTIONS,
    **serve.SECTIONS,
    **attention.SECTIONS,
    **beside.SECTIONS,
    **peers.SECTIONS,
    **peaks.SECTIONS,
}
# Those that are run only where they are asked for: theirs of some samplers are not quite ours, and
# how cost grows takes long.
MORE: dict[str, Callable[..., race.Race]] = {
    **{f"sampler-{name}": partial(samplers.sampler, name) for name in samplers.NAMES},
    **scale.SECTIONS,
}
# Names of several sections.
GROUPS = {
    "control": list(control.SECTIONS),
    "lora": list(lora.SECTIONS),
    "serve": list(serve.SECTIONS),
    "attention": list(attention.SECTIONS),
    "beside": list(beside.SECTIONS),
    "peers": list(peers.SECTIONS),
    "engine": list(peers.OWN),
    "peaks": list(peaks.SECTIONS),
    "scale": list(scale.SECTIONS),
    **{name: list(peers.rows(name)) for name in peers.ENGINES},
}
IDLE = 0.3  # load average up to which a machine is quiet


def bench(arguments: argparse.Namespace) -> None:
    """Run sections, print the table as it grows, write JSON. Raises LDMError where one failed."""
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the processes, too
    load = os.getloadavg()[0]
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    where = machine(arguments.threads, load) | {"clock": clock.__name__}
    where["product_gflops"] = [product_rate()]
    print(", ".join(f"{key} {value}" for key, value in where.items()), end="\n\n")
    print(race.HEAD, flush=True)
    results: list[race.Result] = []
    chosen = [one for name in arguments.only or SECTIONS for one in GROUPS.get(name, [name])]
    for name in chosen:
        began = time.monotonic()
        result = measure(name, arguments, clock)
        gc.collect()
        if load > IDLE and result.state == "measured":
            result.problems.append(f"the load average was {load:.1f}")
        results.append(result)
        print(result.row(arguments.anyway), flush=True)
        notify(f"{name}: {time.monotonic() - began:.0f} s")
        if arguments.json:
            write(arguments.json, where, results)
    where["product_gflops"].append(product_rate())
    if arguments.json:
        write(arguments.json, where, results)
    print(f"\nbare products of matrices, before and after: {where['product_gflops']} GFLOP/s")
    if lost := [result.name for result in results if result.state == "failed"]:
        raise LDMError(f"failed: {', '.join(lost)}; the table has the reasons")
    refused = [one.name for one in results if one.problems and one.state == "measured"]
    if refused and not arguments.anyway:
        raise LDMError(f"refused: {', '.join(refused)}; --anyway prints the figures nevertheless")


def bench_cuda(arguments: argparse.Namespace) -> None:
    """Print the table of CUDA as it grows. Raises LDMError where a row failed."""
    if not arguments.rehearse and not torch.cuda.is_available():
        raise LDMError("this PyTorch sees no CUDA device; --rehearse runs tiny models on the CPU")
    where = machine(arguments.threads, os.getloadavg()[0])
    print(", ".join(f"{key} {value}" for key, value in where.items()), end="\n\n")

    def write(rows: list[dict[str, Any]]) -> None:
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")

    if not cuda.table(arguments.budget, arguments.rehearse, write):
        raise LDMError("a row failed; the table has the reasons")


def measure(name: str, arguments: argparse.Namespace, clock: Callable[[], float]) -> race.Result:
    """Run a section; one that fails is a result that says so."""
    section = (SECTIONS | MORE)[name]
    if name.startswith("sampler"):
        section = partial(section, arguments.prediction_type)
    if name in scale.SECTIONS:
        section = partial(section, minutes=arguments.minutes)
    turns, patience = arguments.turns, race.PATIENCE
    if sizes.tiny():
        turns, patience = turns or 1, 0.0
    try:
        with torch.no_grad():
            return race.run(name, section(), turns, clock, patience, sizes.tiny())
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        return race.failed(name, error)


def product_rate() -> int:
    """Return GFLOP/s of bare products of matrices in float32, the best of some."""
    side, times = 1024, []
    a = torch.randn(side, side)
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - began)
    return round(2 * side**3 / min(times) / 1e9)


def write(path: Path, where: dict[str, Any], results: list[race.Result]) -> None:
    """Write what has been measured so far."""
    report = {"machine": where, "results": [result.to_dict() for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def machine(threads: int, load: float) -> dict[str, Any]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    ).stdout.strip()
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "amx": torch.cpu._is_amx_tile_supported(),
        "load": round(load, 2),
        "python": platform.python_version(),
        "git": commit or None,
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def main() -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m tools.bench",
        description=__doc__.splitlines()[0],
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    names = [*SECTIONS, *MORE, *GROUPS]
    add("--only", action="append", choices=names, metavar="NAME", help=", ".join(names))
    add(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda: its own table",
    )
    add(
        "--budget",
        type=float,
        default=cuda.BUDGET,
        metavar="SECONDS",
        help="of CUDA's table: rows that come later are left out (default: %(default)g)",
    )
    add("--rehearse", action="store_true", help="CUDA's table on the CPU, of tiny models")
    add(
        "--minutes",
        type=float,
        default=scale.MINUTES,
        metavar="N",
        help=f"that a row of scale may take (default: {scale.MINUTES:g})",
    )
    add("--turns", type=int, metavar="N", help="measured runs of each (default: by section)")
    add(
        "--prediction-type",
        choices=samplers.PREDICTIONS,
        default=samplers.PREDICTIONS[0],
        help="what the network's output counts as, of samplers (default: epsilon)",
    )
    add("--threads", type=int, default=os.cpu_count(), metavar="N", help="of both (default: all)")
    add(
        "--cpu-time",
        action="store_true",
        help="time of the processor instead of the clock's, where a busy machine must do: of what "
        "runs in this process, best with --threads 1",
    )
    add(
        "--tiny",
        action="store_true",
        help="tiny networks and pictures: shows that every section runs; its figures mean nothing",
    )
    add("--json", type=Path, metavar="FILE", help="where to write the figures as JSON, too")
    add("--anyway", action="store_true", help="print figures that cannot be trusted, too")
    add("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()
    if arguments.tiny:
        os.environ[sizes.VARIABLE] = "1"
    os.environ.setdefault(OPT_OUT, "system")  # in this process, which is the peer's, too
    on_cuda = arguments.device == "cuda" or arguments.rehearse
    return run(lambda: (bench_cuda if on_cuda else bench)(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
