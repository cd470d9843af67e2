"""``ldm-train``: train a part of the model by a config."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ldm import __version__
from ldm.cli.common import EXIT_CODES, check_counts, run
from ldm.cli.parsing import Parser
from ldm.cli.printed import notify, put_text
from ldm.cli.processes import share_threads


def parser(prog: str = "ldm-train") -> Parser:
    """Build the parser of the command's arguments."""
    parser = Parser(
        prog=prog,
        description="Train a part of the model. "
        "To resume a stopped run, give the same command again; "
        "Ctrl-C stops it after a step, with a checkpoint.",
        epilog=EXIT_CODES,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="a TOML file, such as configs/train/vae.toml",
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
        help="print the settings, the sizes and the memory to expect, and write the first batch as "
        "OUTPUT/first_batch.png, then stop",
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

    import torch

    from ldm.training.config import as_json, read_config
    from ldm.training.loop import train_steps
    from ldm.training.memory import describe_run
    from ldm.training.recipes import build_recipe
    from ldm.training.recipes.captioned import CaptionedRecipe
    from ldm.training.recipes.contact_sheet import write_first_batch

    share_threads(arguments.threads)
    config = read_config(arguments.config, arguments.set)
    torch.manual_seed(config.seed)  # for the initial weights
    recipe = build_recipe(config)
    if arguments.dry_run:
        put_text(f"{json.dumps(as_json(config), indent=2, ensure_ascii=False)}\n")
        put_text("".join(f"{row}\n" for row in describe_run(config, recipe, world_size())))
        if isinstance(recipe, CaptionedRecipe) and config.output:
            put_text(f"first batch: {write_first_batch(recipe, Path(config.output))}\n")
        return
    with stopping() as stop_requested:
        for state in train_steps(config, recipe, arguments.accept_changes):
            if state.metrics and state.main and not arguments.quiet:
                figures = "  ".join(f"{key} {value:.4g}" for key, value in state.metrics.items())
                minutes = f"{state.seconds / 60:.1f} min"
                put_text(f"step {state.step}/{config.steps}  {minutes}  {figures}\n")
            state.stop = stop_requested()
        if stop_requested():
            raise KeyboardInterrupt


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Return whether Ctrl-C or SIGTERM has requested a stop; a second signal stops at once."""
    received: list[int] = []

    def request_stop(number: int, frame: object) -> None:
        if received:
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


def world_size() -> int:
    """Return how many processes ``accelerate launch`` has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def main(argv: Sequence[str] | None = None, prog: str = "ldm-train") -> int:
    """Entry point; returns the exit code. prog: what the user called it."""
    arguments = parser(prog).parse_args(argv)
    return run(lambda: run_training(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
