"""Several processes of ``ldm generate`` at once, forked when PyTorch is imported.

As a script, ``together.py COUNT LOGS ARGUMENT…``, it waits for all and prints their exit codes;
what each prints is in the folder LOGS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def together(count: int, logs: Path, *argv: str) -> tuple[list[int], list[str], str]:
    """Run the command ``count`` times → (exit codes, lines of all stdouts, all of stderr)."""
    logs.mkdir()
    command = [sys.executable, __file__, str(count), str(logs), *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for i in range(count) for line in (logs / f"{i}.out").read_text().splitlines()]
    errors = "".join((logs / f"{i}.err").read_text() for i in range(count))
    return [int(code) for code in done.stdout.split()], lines, errors


def main() -> None:
    count, logs, argv = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    from ldm.cli import generate
    from ldm.pipeline import Pipeline  # noqa: F401 (forked with it)

    started, start = os.pipe()
    processes = []
    for i in range(count):
        processes.append(os.fork())
        if processes[-1] == 0:
            os.close(start)
            for number, end in ((1, "out"), (2, "err")):
                os.dup2(os.open(logs / f"{i}.{end}", os.O_CREAT | os.O_WRONLY), number)
            os.read(started, 1)  # until all are there
            code = 99
            try:
                code = generate.main(argv)
                sys.stdout.flush()
            finally:
                os._exit(code)
    os.close(start)
    print(*(os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in processes))


if __name__ == "__main__":
    main()
