"""Kill commands with SIGKILL at random moments; count what is half-written and what is left behind.

Each command runs on a small random model in a process forked from this one, which has imported
PyTorch: so a kill takes about a second. The moments are uniform over the length of a run that
nothing disturbs. After each kill the files are read, then the same command runs again, to its end.
A command is killed by its process's number, and only that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm.errors import LDMError

TEMPORARY = (".partial", ".part", ".tmp", ".claim")
Tree = dict[str, str]  # path: digest of its content
MEASURED = 10  # kills, after which the time of an undisturbed run is measured again


@dataclass
class Counts:
    """What was found after the kills of a command.

    Attributes:
        hit: kills that came before the command's end. half_written: runs with a file that cannot be
            read, or that is neither the old one nor the new one. left: runs that left temporary
            files; left_after: runs in which they were still there after the next run; failed: next
            runs that did not complete; differ: those that ended with other files than a run that
            nothing disturbed.
    """

    what: str
    seconds: float = 0.0
    kills: int = 0
    hit: int = 0
    half_written: int = 0
    left: int = 0
    left_after: int = 0
    failed: int = 0
    differ: int = 0


@dataclass(frozen=True)
class Command:
    """A command: its arguments, and how its files are compared with those of another run.

    Attributes:
        compared: the ends of the names of the files that must be equal in the end.
        before: makes what is there before the command runs, in its folder, by the kill's number.
        grows: whether files have other content meanwhile, such as weights that are trained.
    """

    argv: Sequence[str]
    compared: tuple[str, ...]
    before: Callable[[Path, int], None] = lambda folder, kill: None
    grows: bool = False


def start(work: Callable[[], int], folder: Path) -> int:
    """Fork a process that works in ``folder`` with its output in ``output.log``; return its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.chdir(folder)
        log = os.open(folder.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        import torch

        torch.set_num_threads(1)
        code = work()
        sys.stdout.flush()
    finally:
        os._exit(code)


def finish(work: Callable[[], int], folder: Path) -> float:
    """Run to the end; return the seconds. Raises LDMError, with the output, if it fails."""
    began = time.monotonic()
    _, status = os.waitpid(start(work, folder), 0)
    if status:
        output = folder.with_suffix(".log").read_text(errors="replace")
        raise LDMError(f"a run failed ({os.waitstatus_to_exitcode(status)}): {output[-2000:]}")
    return time.monotonic() - began


def call(argv: Sequence[str]) -> Callable[[], int]:
    """Return the work of ``ldm ARGV``."""

    def work() -> int:
        from ldm.cli.main import main

        return main(argv)

    return work


def kill_after(seconds: float, work: Callable[[], int], folder: Path) -> bool:
    """Run, and kill after some seconds; return whether that came before the end."""
    pid = start(work, folder)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(min(left, 0.005))
    os.kill(pid, signal.SIGKILL)  # not yet waited for, the number is still its own
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def tree(folder: Path) -> Tree:
    """Return the digests of all files; of what is temporary too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def is_temporary(name: str) -> bool:
    """Whether a path, or a folder in it, is not a command's result."""
    return any(part.startswith(".") or part.endswith(TEMPORARY) for part in name.split("/"))


def broken(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the files that cannot be read as what their names say."""
    from PIL import Image
    from safetensors.numpy import load_file

    found = []
    for name in names:
        path = folder / name
        try:
            if path.suffix in (".png", ".webp"):
                with Image.open(path) as image:
                    image.load()
            elif path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except Exception:
            found.append(name)
    return found


def try_kills(command: Command, counts: Counts, kills: int, seed: int, work: Path) -> None:
    """Kill a command many times, and count."""
    rng = random.Random(f"{counts.what} {seed}")
    undisturbed, folder, run = work / "undisturbed", work / "run", call(command.argv)
    for kill in range(kills):
        if kill % MEASURED == 0:  # again and again, as the machine may have other work to do
            fresh(undisturbed, command, 0)
            counts.seconds = round(finish(run, undisturbed), 2)
            whole = tree(undisturbed)
        fresh(folder, command, kill)
        old = tree(folder)
        counts.kills += 1
        counts.hit += kill_after(rng.uniform(0, counts.seconds), run, folder)
        here = tree(folder)
        results = [name for name in here if not is_temporary(name)]
        mixed = [
            name
            for name in results
            if not command.grows
            and name.endswith(command.compared)
            and here[name] not in (whole.get(name), old.get(name))
        ]
        counts.half_written += bool(mixed or broken(folder, results) or lost(old, here))
        counts.left += any(map(is_temporary, folders_too(folder)))
        try:
            finish(run, folder)
        except LDMError as error:
            print(error, file=sys.stderr)
            counts.failed += 1
            continue
        after = tree(folder)
        counts.left_after += any(map(is_temporary, folders_too(folder)))
        other = [
            name
            for name, digest in whole.items()
            if name.endswith(command.compared) and after.get(name) != digest
        ]
        if other:
            print(f"{counts.what}, kill {kill}: other than undisturbed: {other}", file=sys.stderr)
        counts.differ += bool(other)


def lost(old: Tree, here: Tree) -> bool:
    """Whether some of the files that were there are gone, and not all in the part folder."""
    gone = {digest for name, digest in old.items() if name not in here}
    return not gone <= {digest for name, digest in here.items() if is_temporary(name)}


def folders_too(folder: Path) -> list[str]:
    """Return the paths of all files and folders, also of empty ones."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def fresh(folder: Path, command: Command, kill: int) -> None:
    """Make a folder as it is before the command runs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command.before(folder, kill)


def build(work: Path) -> int:
    """Make the model, an older one in the place of which it is converted, and data to train on."""
    from tools import same_pictures as small

    words = small.Pipeline.from_pretrained(device="cpu", dtype="float32").tokenizer
    noise = small.noise("DDIMScheduler", set_alpha_to_one=False)
    for name, dtype in (("model", None), ("older", small.torch.float16)):
        parts = small.vae(), small.text(), words, small.unet(small.TEXT_UNET), noise
        small.Pipeline(*parts).save_pretrained(work / name, dtype)
    small.build_data(work / "data")
    values = {
        "recipe": "autoencoder",
        "data": str(work / "data" / "captioned"),
        "output": "run",
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "mixed_precision": "no",
        "log_every": 2,
        "sample_every": 6,
        "checkpoint_minutes": 0,  # after each step
        "model": small.SMALL_VAE,
        "options": {
            "kl_weight": 1e-4,
            "gradient_weight": 0.5,
            "adversarial_weight": 0.0,
            "phases": [{"until": 1.0, "size": 24, "batch_size": 4}],
        },
    }
    (work / "train.toml").write_text(small.toml(values), encoding="utf-8")
    return 0


def older(folder: Path, kill: int) -> None:
    """Put an older model where every other run writes its own."""
    if kill % 2:
        shutil.copytree(folder.parent / "older", folder / "out")


def commands(work: Path) -> dict[str, Command]:
    """Return what can be killed."""
    model, config = str(work / "model"), str(work / "train.toml")
    draw = [
        "generate",
        "a car",
        "a cat",
        "a cup",
        "--num-images",
        "3",
        "--model",
        model,
        "--seed",
        "1",
    ]
    draw += ["--steps", "2", "--batch-size", "1", "--save-steps"]
    draw += ["-o", "out/", "--skip-existing"]
    return {
        "generate": Command(draw, (".png",)),
        # Not the curves, which show the log's figures: those after a resume are of fewer steps.
        "train": Command(["train", "--config", config], (".safetensors", "06.png"), grows=True),
        "convert": Command(["convert", model, "out", "--force"], ("",), older),
    }


def table(rows: Sequence[Counts]) -> str:
    """Lay out the counts."""
    names = list(asdict(rows[0]))
    lines = [[str(value) for value in asdict(row).values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in [names, *lines]
    )


def main() -> int:
    """Kill, and print the table; returns 1 if something was lost or left after the next run."""
    parser = argparse.ArgumentParser(prog="python -m tools.kills", description=__doc__)
    known = ("generate", "train", "convert")
    parser.add_argument("--what", nargs="+", choices=known, default=list(known))
    parser.add_argument("--kills", type=int, default=100, help="of each command (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    arguments = parser.parse_args()
    warm()
    rows = []
    with tempfile.TemporaryDirectory(prefix="ldm-kills-") as name:
        work = Path(name)
        (work / "build").mkdir()
        finish(lambda: build(work), work / "build")
        for what in arguments.what:
            rows.append(Counts(what))
            try_kills(commands(work)[what], rows[-1], arguments.kills, arguments.seed, work)
            print(table(rows), flush=True)
    return int(any(row.half_written or row.left_after or row.failed or row.differ for row in rows))


def warm() -> None:
    """Import what commands take long to import; no thread may start before processes are forked."""
    import torch._dynamo  # noqa: F401

    import ldm.pipeline
    import ldm.training.loop
    import ldm.training.recipes  # noqa: F401
    import tools.same_pictures  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
