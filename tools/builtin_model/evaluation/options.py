"""Options that several commands of the evaluation have."""

from pathlib import Path

from ldm.cli.common import EXIT_CODES
from ldm.cli.parsing import Parser
from ldm.errors import ArgumentError
from tools.builtin_model.evaluation.classifier import ABOUT


def shared_parser(description: str) -> Parser:
    """Build a parser with the options of all commands that measure."""
    parser = Parser(description=description, epilog=EXIT_CODES)
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/icons"), help="data set (default: data/icons)")
    add("--model", help="a diffusers folder or a hub id (default: the built-in model)")
    add(
        "--output",
        type=Path,
        default=Path("runs/evaluation"),
        help="folder of the report and of the judges (default: runs/evaluation)",
    )
    add(
        "--archives",
        type=Path,
        default=Path("data/npm"),
        help="folder of npm .tgz files, for the classifier's training (default: data/npm)",
    )
    add("--prompts", type=int, metavar="N", help="only so many, the first (default: all)")
    add("--threads", type=int, metavar="N", help="processor cores to use (default: torch's choice)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_drawing(parser: Parser) -> None:
    """Add the options that say how ``draw`` draws."""
    add = parser.add_argument
    add(
        "--num-inference-steps",
        "--steps",
        type=int,
        metavar="N",
        help="denoising steps (default: as the model advises)",
    )
    add("--guidance-scale", type=float, metavar="S", help="(default: as the model advises)")
    add("--sampler", metavar="NAME", help="as of ldm-generate (default: the model's own)")
    add("--seed", type=int, default=0, help="of the first picture; the next count up (default: 0)")
    add("--batch-size", type=int, default=16, metavar="N", help="pictures at once (default: 16)")
    add("--dtype", help="of the model, as of ldm-generate (default: by the device)")


def add_judge(parser: Parser) -> None:
    """Add the folder of the judges that an earlier run of ``evaluate`` trained."""
    parser.add_argument(
        "--judge",
        type=Path,
        default=Path("runs/evaluation"),
        metavar="DIR",
        help="folder of the judges (default: runs/evaluation)",
    )


def check_judge(folder: Path) -> None:
    """Raise ArgumentError for a ``--judge`` without the classifier of things."""
    if not (folder / ABOUT).is_file():
        raise ArgumentError(
            f"--judge {folder} has no {ABOUT}; the --output of a run of "
            "tools.builtin_model.evaluate has"
        )
