"""How long the first picture takes: whole processes beside ``python -c "import torch"``, in turns.

    python -m tools.cold_start                      # 1, 4 and 20 steps
    python -m tools.cold_start --diffusers --turns 5
    python -m tools.cold_start --stages             # the stages of one process
    python -m tools.cold_start --modules            # what is imported beyond PyTorch

Each turn runs every command once, one after the other. A ratio is the median of the turns' ratios,
of the clock's time and of the processor's (user and system, of all threads), which is the steadier
one on a busy machine. To compare two states of the code, add ``--against FOLDER``, another
checkout: its ``ldm`` takes its turns, too.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from ldm.checkpoints.assets import asset_path
from ldm.cli.common import EXIT_CODES, run
from ldm.cli.parsing import Parser
from ldm.errors import LDMError

ROOT = Path(__file__).parents[1]
BASE = "import torch"
PROMPT = "a red car"
STEPS = (1, 4, 20)
DIFFUSERS = """
import sys, torch
from diffusers import StableDiffusionPipeline
folder, steps, output = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
pipe("a red car", num_inference_steps=int(steps), guidance_scale=4.0).images[0].save(output)
"""
# Laps of ``ldm generate``'s own order of work, without its checks of arguments.
STAGES = """
import json, sys, time
began = time.perf_counter(), time.process_time()
laps = {}
def lap(name):
    global began
    now = time.perf_counter(), time.process_time()
    laps[name] = [b - a for a, b in zip(began, now)]
    began = time.perf_counter(), time.process_time()
import ldm.cli.generate
from ldm.cli.common import importing_torch
lap("ldm.cli.generate imported")
with importing_torch():
    import torch
    lap("torch imported")
    import ldm.pipeline
lap("ldm.pipeline imported")
pipe = ldm.pipeline.Pipeline.from_pretrained().optimize()
lap("model loaded")
for steps in (1, 1, 4, 20):
    images = pipe("a red car", seed=1, num_inference_steps=steps, progress_bar=False).images
    lap(f"{steps} steps" if steps > 1 else "1 step again" if "1 step" in laps else "1 step")
images[0].save(sys.argv[1])
lap("PNG saved")
print(json.dumps(laps))
"""


class Taken(NamedTuple):
    """Seconds of a process."""

    clock: float
    processor: float


def timed(command: list[str], environment: dict[str, str], folder: Path = ROOT) -> Taken:
    """Run a process to its end. Raises LDMError with its last line of errors where it fails."""
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        clock = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            lines = errors.read().decode(errors="replace").strip().splitlines()
            raise LDMError(f"{' '.join(command)[:80]} failed: {(lines or ['it said nothing'])[-1]}")
    return Taken(clock, usage.ru_utime + usage.ru_stime)


def commands(work: Path, diffusers: bool) -> dict[str, list[str]]:
    """Return what is raced by its name; the first is what all are compared with."""
    output = str(work / "picture.png")
    found = {BASE: ["-c", "import torch"]}
    for steps in STEPS:
        options = [] if steps == 20 else ["--steps", str(steps)]  # 20 is the default
        drawing = ["generate", PROMPT, *options, "--output", output, "--force"]
        found[f"ldm, {steps} steps" if steps > 1 else "ldm, 1 step"] = ["-m", "ldm", *drawing]
    if diffusers:
        folder = str(asset_path("weights"))
        found |= {
            f"diffusers, {n} steps": ["-c", DIFFUSERS, folder, str(n), output] for n in (4, 20)
        }
    return {name: [sys.executable, *rest] for name, rest in found.items()}


def usual_environment() -> dict[str, str]:
    """Return the environment, with bytecode kept in files as an installed package has it.

    Without, Python compiles all sources of a checkout at each start, but none of PyTorch's.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def race(turns: int, diffusers: bool, against: Path | None) -> dict[str, list[Taken]]:
    """Run all commands in turns, after a warm-up each."""
    environment = usual_environment()
    with tempfile.TemporaryDirectory() as work:
        raced = {name: (command, ROOT) for name, command in commands(Path(work), diffusers).items()}
        for name, (command, _) in list(raced.items()) if against else ():
            if name.startswith("ldm"):
                raced[f"{name}, {against}"] = command, against
        found: dict[str, list[Taken]] = {name: [] for name in raced}
        for turn in range(turns + 1):
            for name, (command, folder) in raced.items():
                taken = timed(command, environment, folder)
                if turn:
                    found[name].append(taken)
    return found


def ratio(ones: list[Taken], others: list[Taken]) -> Taken:
    """Return the medians of the turns' ratios."""
    pairs = list(zip(ones, others, strict=True))
    return Taken(
        statistics.median(one.clock / other.clock for one, other in pairs),
        statistics.median(one.processor / other.processor for one, other in pairs),
    )


def table(found: dict[str, list[Taken]]) -> list[str]:
    """Return a Markdown table: medians, and ratios beside ``import torch`` and diffusers."""
    lines = [
        "| process | clock, s (least) | processor, s | of `import torch` | … of the processor | "
        "of diffusers |",
        "|---|---|---|---|---|---|",
    ]
    for name, taken in found.items():
        clock, processor = (statistics.median(each) for each in zip(*taken, strict=True))
        least = min(each.clock for each in taken)
        parts = ratio(taken, found[BASE])
        theirs = found.get(name.replace("ldm", "diffusers"))
        beside = ratio(taken, theirs) if theirs and name.startswith("ldm") else None
        cell = f"{beside.clock:.2f} ({beside.processor:.2f})" if beside else ""
        lines.append(
            f"| `{name}` | {clock:.2f} ({least:.2f}) | {processor:.2f} | {parts.clock:.2f} | "
            f"{parts.processor:.2f} | {cell} |"
        )
    return lines


def stages(turns: int) -> list[str]:
    """Return a table of the medians of stages of one process."""
    found: list[dict[str, list[float]]] = []
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-c", STAGES, str(Path(work) / "picture.png")]
        for _ in range(turns + 1):
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=usual_environment(),
                capture_output=True,
                text=True,
                check=True,
            )
            found.append(json.loads(done.stdout))
    lines = ["| stage | clock, ms | processor, ms |", "|---|---|---|"]
    for name in found[0]:
        pairs = [each[name] for each in found[1:]]
        clock, processor = (1000 * statistics.median(each) for each in zip(*pairs, strict=True))
        lines.append(f"| {name} | {clock:.0f} | {processor:.0f} |")
    return lines


def import_times(command: list[str]) -> dict[str, int]:
    """Return the microseconds that each module's own code took, by ``-X importtime``."""
    command = [sys.executable, "-X", "importtime", *command]
    done = subprocess.run(
        command, cwd=ROOT, env=usual_environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise LDMError(f"{' '.join(command)[:80]} failed: {done.stderr.splitlines()[-1]}")
    rows = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.MULTILINE)
    return {name: int(taken) for taken, name in rows}


def modules() -> list[str]:
    """Return what ``ldm generate`` imports beyond ``import torch``: sums by package, slowest first.

    Measuring makes an import about a tenth slower.
    """
    with tempfile.TemporaryDirectory() as work:
        command = commands(Path(work), False)["ldm, 1 step"][1:]
        import_times(command)  # which compiles what has changed
        torch, ours = import_times(["-c", "import torch"]), import_times(command)
    own = {name: taken for name, taken in ours.items() if name not in torch}
    lines = [
        f"{len(torch)} modules in {sum(torch.values()) / 1000:.0f} ms by `import torch`; beyond it "
        f"{len(own)} in {sum(own.values()) / 1000:.0f} ms",
        "",
        "| package | modules | ms |",
        "|---|---|---|",
    ]
    sums: dict[str, list[int]] = {}
    for name, taken in own.items():
        parts = name.split(".")
        sums.setdefault(".".join(parts[: 2 if parts[0] in ("ldm", "torch") else 1]), []).append(
            taken
        )
    for name, each in sorted(sums.items(), key=lambda item: -sum(item[1])):
        if sum(each) >= 1000:
            lines.append(f"| {name} | {len(each)} | {sum(each) / 1000:.1f} |")
    return lines


def main() -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m tools.cold_start", description=__doc__.splitlines()[0], epilog=EXIT_CODES
    )
    add = parser.add_argument
    add("--turns", type=int, default=7, metavar="N", help="measured turns (default: 7)")
    add("--diffusers", action="store_true", help="race diffusers with 4 and 20 steps, too")
    add("--against", type=Path, metavar="FOLDER", help="race another checkout's ldm, too")
    add("--stages", action="store_true", help="print the stages of one process instead")
    add("--modules", action="store_true", help="print what is imported beyond PyTorch instead")
    add("--json", type=Path, metavar="FILE", help="where to write every process's seconds, too")
    add("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()

    def work() -> None:
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n", flush=True)
        if arguments.stages:
            lines = stages(arguments.turns)
        elif arguments.modules:
            lines = modules()
        else:
            found = race(arguments.turns, arguments.diffusers, arguments.against)
            lines = table(found)
            if arguments.json:
                arguments.json.write_text(json.dumps(found) + "\n")
        print("\n".join(lines))

    return run(work, arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
