"""Print the rows of two reports of `evaluate` side by side, with their differences.

    python -m tools.builtin_model.compare_reports runs/evaluation runs/four-steps

Differences of shares are in points, with their 95 % intervals; a star marks those whose interval
leaves out 0. Folders or `report.json` files are given.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ldm.cli.common import EXIT_CODES, run
from ldm.cli.parsing import Parser
from ldm.errors import ArgumentError
from tools.builtin_model.evaluation.intervals import difference
from tools.builtin_model.evaluation.report import table, with_interval

DISTANCES = ("frechet",)  # which are no shares


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of a report by their names. Raises ArgumentError where there are none."""
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text())
        return {row["name"]: row for row in report["bars"]}
    except OSError as error:
        raise ArgumentError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise ArgumentError(
            f"{file} is no report; python -m tools.builtin_model.evaluate writes one"
        ) from None


def lines(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a table of the rows that both reports have figures for."""
    rows = []
    for name, first in a.items():
        second = b.get(name, {})
        if first.get("drawn") is None or second.get("drawn") is None:
            continue
        cells = [with_interval({"drawn_interval": None} | row, "drawn") for row in (first, second)]
        rows.append([first["what"], *cells, change(name, first, second)])
    return table(["", "first", "second", "second less first"], rows)


def change(name: str, a: dict[str, Any], b: dict[str, Any]) -> str:
    """Write how much more the second has: "−3.1 (−6.0 to −0.2) *"."""
    scale, digits = (1, 2) if name in DISTANCES else (100, 1)
    text = f"{scale * (b['drawn'] - a['drawn']):+.{digits}f}"
    ours, theirs = a.get("drawn_interval"), b.get("drawn_interval")
    if ours is None or theirs is None:
        return text
    low, high = difference(a["drawn"], ours, b["drawn"], theirs)
    certain = " *" if low > 0 or high < 0 else ""
    return f"{text} ({scale * low:+.{digits}f} to {scale * high:+.{digits}f}){certain}"


def compare(arguments: argparse.Namespace) -> None:
    """Print the table. Raises ArgumentError where the reports have no row in common."""
    rows = lines(read(arguments.first), read(arguments.second))
    if len(rows) <= 2:
        raise ArgumentError(
            f"{arguments.first} and {arguments.second} measure nothing in common; draw the same "
            "--kinds in both"
        )
    print("\n".join(rows))


def main(argv: list[str] | None = None) -> int:
    """Compare; returns the exit code: 0, 2 for a bad argument."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES)
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, help="folder of a report, or its report.json")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run(lambda: compare(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
