"""The options of ``ldm serve``, and defaults of the user's own for them.

They are in the table ``[serve]`` of ``ldm.toml``, or in ``LDM_SERVE_…``: keys are the names of
options. What any command uses, such as ``model``, may be above the table, for all commands.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ldm import __version__
from ldm.cli import configuration
from ldm.cli.common import EXIT_CODES
from ldm.cli.configuration import ON_OFF, PREFIX, SERVE
from ldm.cli.parsing import Checker, Parser
from ldm.cli.ways import OPTIONS, add_ways
from ldm.config.checking import shown
from ldm.errors import ArgumentError, did_you_mean

EXAMPLES = """\
examples:
  ldm serve
  ldm serve --model sd15.safetensors --model-dir models --lora-dir loras --output-dir pictures
  LDM_API_KEY=… ldm serve --host 0.0.0.0           for other machines, which need the key
"""
FOLDERS = ("model", "lora", "embedding", "controlnet", "upscaler", "output")
# With other commands:
SHARED = ("model", "model_dir", "lora_dir", "device", "dtype", "optimize", *OPTIONS)
NOT_HERE = ("help", "version", "debug")
PATHS = ("model", "api_key_file", *(f"{kind}_dir" for kind in FOLDERS))  # "~" is the user's folder


def parser(prog: str = "ldm serve", kind: type[Parser] = Parser) -> Parser:
    """Build the parser of the command's arguments."""
    parser = kind(
        prog=prog,
        description="Open a page that draws, and answer the HTTP of A1111's and OpenAI's clients.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_models(parser.add_argument_group("models"))
    add_access(parser.add_argument_group("who may use it"))
    add_limits(parser.add_argument_group("limits"))
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"ldm {__version__}")
    return parser


def add_models(group: argparse._ArgumentGroup) -> None:
    """Add what is served."""
    add = group.add_argument
    add("--model", metavar="MODEL", help="the model at first (default: built-in)")
    add("--model-dir", type=Path, metavar="DIR", help="models to choose from")
    for kind in ("lora", "embedding", "controlnet", "upscaler"):
        add(f"--{kind}-dir", type=Path, metavar="DIR", help=f"{kind}s to choose from")
    add("--output-dir", type=Path, metavar="DIR", help="write every picture there")
    add("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    add("--dtype", help="float32, float16 or bfloat16")
    add(
        "--no-optimize", dest="optimize", action="store_false", default=None, help="compute plainly"
    )
    add_ways(add)


def add_access(group: argparse._ArgumentGroup) -> None:
    """Add where it listens, and to whom."""
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    add("--port", type=int, default=7860, help="port to listen at (default: %(default)s)")
    add(
        "--api-key",
        metavar="KEY",
        help="what clients have to send; better in LDM_API_KEY, as others see command lines",
    )
    add("--api-key-file", type=Path, metavar="FILE", help="a file whose first line is the key")
    add("--insecure", action="store_true", help="let everybody on the network draw, without a key")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of this server, such as a proxy's",
    )
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a site whose pages may use it, such as https://example.com (CORS)",
    )


def add_limits(group: argparse._ArgumentGroup) -> None:
    """Add the limits."""
    add = group.add_argument
    add("--max-pixels", type=int, metavar="N", help="of a picture (default: 4194304, 2048x2048)")
    add("--max-steps", type=int, metavar="N", help="of a picture (default: 150)")
    add("--max-pictures", type=int, metavar="N", help="of one request (default: 64)")
    add("--max-batch", type=int, metavar="N", help="pictures drawn at once (default: 8)")
    add("--max-waiting", type=int, metavar="N", help="jobs in the queue (default: 512)")
    add(
        "--rate",
        type=float,
        metavar="N",
        help="requests a second of each address, 0 for no limit (default: 20, of other machines)",
    )
    add(
        "--grace",
        type=float,
        metavar="SECONDS",
        default=30.0,
        help="in which pictures may be finished when it is stopped (default: %(default)g)",
    )


def parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """Parse the command line over the user's own defaults.

    Raises ArgumentError for a wrong default, and says where it is set.
    """
    return parser(prog).parse_args(argv, argparse.Namespace(**defaults()))


def defaults() -> dict[str, Any]:
    """Return the values that files and the environment set, by the options' names."""
    shared = configuration.read_settings()
    found = {name: shared[name].value for name in SHARED if name in shared}
    for path in (configuration.user_file(), Path(configuration.NAME)):
        if path.is_file():
            found |= dict(read_table(path))
    return found | dict(read_environment())


def read_table(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield what the table of a file sets."""
    text, rows = configuration.read_rows(path)
    table = rows.get(SERVE)
    for key, value in table.items() if isinstance(table, dict) else ():
        below = text[text.index(SERVE) :]
        above = text.count("\n", 0, len(text) - len(below))
        line = int(configuration.origin_of(path, below, key).rpartition(":")[2])
        yield read_value(key, value, f"{path}:{above + line}")


def read_environment() -> Iterator[tuple[str, Any]]:
    """Yield what ``LDM_SERVE_…`` and ``LDM_API_KEY`` set."""
    start = f"{PREFIX}{SERVE.upper()}_"
    for variable, text in sorted(os.environ.items()):
        if variable == configuration.API_KEY and text:
            yield "api_key", text
        elif variable.startswith(start) and text:
            yield read_value(variable.removeprefix(start), text, variable)


def read_value(key: str, value: Any, origin: str) -> tuple[str, Any]:
    """Return an option's name and its value. Raises ArgumentError if either is wrong."""
    name = key.lower().replace("-", "_")
    checker = parser(kind=Checker)
    actions = {action.dest: action for action in checker._actions if action.dest not in NOT_HERE}
    if name not in actions:
        hint = did_you_mean(name, sorted(actions)) or f"there are: {', '.join(sorted(actions))}"
        raise ArgumentError(f"{origin}: {key} is no setting of ldm serve; {hint}")
    if actions[name].nargs == 0:
        switch = ON_OFF.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(switch, bool):
            raise ArgumentError(f"{origin}: {key} is {shown(value)}; expected true or false")
        return name, switch
    several = isinstance(actions[name].default, list)
    values = value if several and isinstance(value, list) else [value]
    if not all(isinstance(each, str | int | float) for each in values) or value in (True, False):
        raise ArgumentError(f"{origin}: {key} is {shown(value)}; expected a text or a number")
    if name in PATHS:
        values = [os.path.expanduser(str(each)) for each in values]  # noqa: PTH111  # or a hub id
    try:
        parsed = checker.parse_args([f"{actions[name].option_strings[0]}={v}" for v in values])
    except ArgumentError as error:
        raise ArgumentError(f"{origin}: {key}: {str(error).partition(': ')[2]}") from None
    return name, getattr(parsed, name)
