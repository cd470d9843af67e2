"""``--processes N``: several processes of one machine, which share the pictures and its cores."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from ldm.cli.common import check_counts, random_seed
from ldm.cli.streams import OWN_INPUT, read_stdin
from ldm.errors import ArgumentError, LDMError

if TYPE_CHECKING:
    import subprocess

MOST = 256
PATIENCE = 30  # seconds for a process to finish its step and stop


def share_threads(threads: int | None) -> None:
    """Set how many threads PyTorch uses: as given, else an equal part of the processor's cores.

    Processes of one machine would otherwise all use all of it. ``accelerate launch`` divides by
    itself, by OMP_NUM_THREADS; what is set there stays.
    """
    import torch

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if threads is not None:
        torch.set_num_threads(threads)
    elif processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def check_processes(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for what several processes cannot do."""
    check_counts(arguments, "processes", "threads")
    if arguments.processes > MOST:
        raise ArgumentError(f"--processes is {arguments.processes}; at most {MOST} make sense")
    if arguments.processes > 1:
        for name in ("grid", "x", "y"):
            if getattr(arguments, name):
                raise ArgumentError(f"--{name} needs all pictures in one process; leave it out")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that was asked to stop; end it if it does not."""
    from subprocess import TimeoutExpired

    try:
        process.wait(PATIENCE)
    except TimeoutExpired:
        process.terminate()
        process.wait()


def launch(
    arguments: argparse.Namespace, argv: Sequence[str], batches: int, uses_stdin: bool
) -> None:
    """Draw in several processes: run the same command in each, with a rank as ``accelerate`` has.

    batches: of pictures to draw; there are no more processes than that. Raises LDMError if one
    failed, after all have ended.
    """
    import subprocess  # these take longer to import than a single process would wait for
    import tempfile

    count = min(arguments.processes, max(batches, 1))
    command = [sys.executable, "-m", "ldm.cli.generate"]
    options = [f"--processes={count}"]
    if arguments.seed == -1:
        options.append(f"--seed={random_seed()}")
    texts = list(argv)
    place = texts.index("--") if "--" in texts else len(texts)
    command += [*texts[:place], *options, *texts[place:]]
    environment = os.environ | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    with tempfile.NamedTemporaryFile(prefix="ldm-") as shared:
        if uses_stdin:
            shared.write(read_stdin("the input"))
            shared.flush()
            environment[OWN_INPUT] = "1"
        running: list[subprocess.Popen[bytes]] = []
        opened: list[IO[bytes]] = []
        try:
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                if uses_stdin:
                    opened.append(open(shared.name, "rb"))  # noqa: SIM115, PTH123
                running.append(
                    subprocess.Popen(
                        command,
                        env=environment | own,
                        stdin=opened[-1] if uses_stdin else subprocess.DEVNULL,
                    )
                )
            codes = [process.wait() for process in running]
        except BaseException:
            for process in running:  # as Ctrl-C does: they remove what is half-written
                process.send_signal(signal.SIGINT)
            for process in running:
                stop(process)
            raise
        finally:
            for file in opened:
                file.close()
    if failed := [code for code in codes if code]:
        raise LDMError(f"{len(failed)} of {count} processes failed (exit code {failed[0]})")
