"""``ldm-train``: train a part of the model by a config."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm import __version__
from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.model_folder import find_model
from ldm.cli.common import EXIT_CODES, check_counts, run
from ldm.cli.configuration import default_model_dir
from ldm.cli.parsing import Parser
from ldm.cli.printed import notify, put_text
from ldm.cli.processes import share_threads
from ldm.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    from ldm.training.loop import State

EXAMPLES = """\
examples:
  ldm train lora --model sd15.safetensors --data photos/dog --output runs/dog
  ldm train --config configs/train/mnist.toml --set steps=500
"""


def parser(prog: str = "ldm-train") -> Parser:
    """Build the parser of the command's arguments."""
    parser = Parser(
        prog=prog,
        description="Train a LoRA or another part of a model. "
        "To resume a stopped run, give the same command again; "
        "Ctrl-C stops it after a step, with a checkpoint.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "method",
        nargs="?",
        metavar="METHOD",
        help="what to train, by one of the configs that come with ldm, such as lora; "
        "or give --config",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a TOML file, such as configs/train/vae.toml"
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="the model to train or to train for (default: built-in)"
    )
    parser.add_argument("--data", metavar="FOLDER", help="pictures, or another data set")
    parser.add_argument("--output", metavar="RUN", help="the folder of the run")
    parser.add_argument(
        "--instance-prompt",
        metavar="TEXT",
        help='the caption of pictures without one, such as "a photo of sks dog"',
    )
    parser.add_argument(
        "--class-prompt",
        metavar="TEXT",
        help='what else must not be forgotten (DreamBooth), such as "a photo of a dog"',
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, e.g. --set steps=100",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the settings, the sizes and all of the memory to expect, and write the first "
        "batch as OUTPUT/first_batch.png, then stop",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a run under other settings than it began with",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of this process")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"ldm {__version__}")
    return parser


def run_training(arguments: argparse.Namespace) -> None:
    """Read the config, build its recipe and run the loop, printing its metrics."""
    check_counts(arguments, "threads")
    config_file = find_config(arguments.method, arguments.config)

    import torch

    from ldm.training.config import as_json, read_config
    from ldm.training.loop import train_steps
    from ldm.training.memory import describe_run
    from ldm.training.recipes import build_recipe

    share_threads(arguments.threads)
    config = read_config(config_file, [*given_settings(arguments), *arguments.set])
    torch.manual_seed(config.seed)  # for the initial weights
    recipe = build_recipe(config)
    if arguments.dry_run:
        put_text(f"{json.dumps(as_json(config), indent=2, ensure_ascii=False)}\n")
        put_text("".join(f"{row}\n" for row in describe_run(config, recipe, world_size())))
        from ldm.training.recipes.captioned import CaptionedRecipe
        from ldm.training.recipes.contact_sheet import write_first_batch

        if isinstance(recipe, CaptionedRecipe) and config.output:
            put_text(f"first batch: {write_first_batch(recipe, Path(config.output))}\n")
        return
    if is_main_process() and not arguments.quiet:
        rows = describe_run(config, recipe, world_size(), activations=False)
        put_text("".join(f"{row}\n" for row in rows))
    steps_done = 0
    with (
        # Before a step is done, nothing is lost: pictures that were encoded by then are kept.
        stopping(lambda: steps_done > 0) as stop_requested,
        printed_log() if is_main_process() and not arguments.quiet else contextlib.nullcontext(),
    ):
        for state in train_steps(config, recipe, arguments.accept_changes):
            steps_done += 1
            if state.metrics and state.main and not arguments.quiet:
                put_text(f"{progress(state, config.steps)}\n")
            state.stop = stop_requested()
        if stop_requested():
            raise KeyboardInterrupt


def progress(state: State, steps: int) -> str:
    """Return a line on a step, with its metrics and the time that the run still takes."""
    figures = "  ".join(f"{key} {value:.4g}" for key, value in state.metrics.items())
    minutes = f"{state.seconds / 60:.1f} min"
    speed = state.metrics.get("steps_per_second")
    if speed and state.step < steps:
        minutes += f", {(steps - state.step) / speed / 60:.1f} left"
    return f"step {state.step}/{steps}  {minutes}  {figures}"


def find_config(method: str | None, file: str | None) -> str:
    """Return the file of settings: ``file``, or the method's own.

    Raises ArgumentError for neither, both, or a method that is not known.
    """
    if (method is None) == (file is None):
        raise ArgumentError(
            "give a METHOD, such as lora, or --config FILE"
            + (", not both" if method is not None else "")
        )
    if file is not None:
        return file
    folder = asset_path("configs") / "train"
    known = sorted(path.stem for path in folder.glob("*.toml"))
    name = str(method).replace("-", "_")
    if name not in known:
        hint = did_you_mean(name, known) or f"known are {', '.join(known)}"
        raise ArgumentError(f"{method!r:.200} is no method to train by; {hint}")
    return str(folder / f"{name}.toml")


def given_settings(arguments: argparse.Namespace) -> list[str]:
    """Return the options that stand for settings as ``--set`` has them."""
    values = {
        "options.base": arguments.model and find_model(arguments.model, default_model_dir()),
        "data": arguments.data,
        "output": arguments.output,
        "options.instance_prompt": arguments.instance_prompt,
        "options.class_prompt": arguments.class_prompt,
    }
    return [
        f"{key}={json.dumps(str(value), ensure_ascii=False)}"
        for key, value in values.items()
        if value is not None
    ]


class Printer(logging.Handler):
    """Prints messages of the log as lines on stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        put_text(f"{record.getMessage()}\n")


@contextlib.contextmanager
def printed_log() -> Iterator[None]:
    """Print what training logs: how far the encoding of pictures and captions has come."""
    log, printer = logging.getLogger("ldm.training"), Printer()
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(printer)
    try:
        yield
    finally:
        log.removeHandler(printer)
        log.setLevel(level)


@contextlib.contextmanager
def stopping(begun: Callable[[], bool] = lambda: True) -> Iterator[Callable[[], bool]]:
    """Return whether Ctrl-C or SIGTERM has requested a stop; a second signal stops at once.

    begun: whether there is a step to end first; else the first signal stops at once, too.
    """
    received: list[int] = []

    def request_stop(number: int, frame: object) -> None:
        if received or not begun():
            raise KeyboardInterrupt
        received.append(number)
        notify("stopping after this step, with a checkpoint (once more: at once, without)")

    before = {
        number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_main_process() -> bool:
    """Whether this is the first of those that ``accelerate launch`` has started."""
    return int(os.environ.get("RANK", 0)) == 0


def world_size() -> int:
    """Return how many processes ``accelerate launch`` has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def main(argv: Sequence[str] | None = None, prog: str = "ldm-train") -> int:
    """Entry point; returns the exit code. prog: what the user called it."""
    arguments = parser(prog).parse_args(argv)
    return run(lambda: run_training(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
