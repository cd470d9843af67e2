"""Fuzz all readers: ``python -m tests.fuzz --seconds 3600``; one case again: ``--case``.

Each reader runs in a process of its own, so that one that is killed ends no other. The table gives
the cases, those refused, escapes (other errors, more than ten seconds, more than two gigabytes) and
the slowest case.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.gate import MOST_SECONDS, Figures, case, fuzz
from tests.fuzz.readers import READERS

OUT = "fuzz-cases"  # in the folder of temporary files


def run_here(reader: str, options: argparse.Namespace) -> Figures:
    """Fuzz one reader in this process."""
    with tempfile.TemporaryDirectory(prefix="ldm-fuzz-") as folder:
        return fuzz(
            READERS[reader],
            Path(folder),
            cases=options.cases,
            seconds=options.seconds,
            seed=options.seed,
            first=options.case or 0,
        )


def run_apart(reader: str, options: argparse.Namespace) -> Figures:
    """Fuzz one reader in another process."""
    command = [sys.executable, "-m", "tests.fuzz", "--json", "--readers", reader]
    for name in ("cases", "seconds", "seed"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, check=False)
    try:
        return Figures(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        end = done.stderr.decode(errors="replace")[-3000:]
        return Figures(
            reader, escaped=1, escapes=[f"{reader}: the process ended ({done.returncode}): {end}"]
        )


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    result.add_argument(
        "--readers", nargs="+", choices=READERS, default=list(READERS), metavar="NAME",
        help="default: all",
    )  # fmt: skip
    result.add_argument("--cases", type=int, help="of each reader")
    result.add_argument("--seconds", type=float, help="for all readers together")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--case", type=int, metavar="N", help="write this case alone, and try it")
    result.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    return result


def main() -> int:
    """Fuzz, print a table, and every escape."""
    options = parser().parse_args()
    if options.json:
        faulthandler.dump_traceback_later(MOST_SECONDS + (options.seconds or 3600) * 2, exit=True)
        print(json.dumps(asdict(run_here(options.readers[0], options))))
        return 0
    if options.case is not None:
        (name,) = options.readers
        folder = Path(tempfile.gettempdir(), OUT)
        folder.mkdir(exist_ok=True)
        path = folder / READERS[name].file
        path.write_bytes(
            case(READERS[name], list(READERS[name].seeds()), options.seed, options.case)
        )
        print(path)
        options.cases = 1
        found = [run_here(name, options)]
    else:
        if options.seconds is not None:
            options.seconds /= len(options.readers)
        elif options.cases is None:
            options.cases = 100
        found = []
        for reader in options.readers:
            found.append(run_apart(reader, options))
            report(found[-1])
    for escape in (escape for figures in found for escape in figures.escapes):
        print(f"\n{escape}")
    print(f"\n{sum(one.cases for one in found):,} cases")
    return int(any(one.escapes for one in found))


def report(figures: Figures) -> None:
    """Print a row of the table."""
    print(
        f"{figures.reader:28} {figures.cases:8,} cases {figures.refused:8,} refused "
        f"{figures.escaped:4} escapes, {figures.seconds:6.1f} s, slowest "
        f"{figures.slowest:.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
