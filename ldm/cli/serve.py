"""``ldm serve``: a page and HTTP interfaces."""

from __future__ import annotations

import argparse
import importlib.util
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm import __version__
from ldm.checkpoints.model_folder import find_model
from ldm.cli.common import EXIT_CODES, run
from ldm.cli.configuration import default_model_dir
from ldm.cli.parsing import Parser
from ldm.cli.printed import notify
from ldm.errors import ArgumentError, LDMError

if TYPE_CHECKING:
    from ldm.server.settings import Settings

EXAMPLES = """\
examples:
  ldm serve
  ldm serve --model sd15.safetensors --model-dir models --lora-dir loras --output-dir pictures
"""
NEEDED = ("fastapi", "python_multipart", "uvicorn")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def parser(prog: str = "ldm serve") -> Parser:
    """Build the parser of the command's arguments."""
    parser = Parser(
        prog=prog,
        description="Open a page that draws, and answer the HTTP of A1111's and OpenAI's clients.",
        epilog=f"{EXAMPLES}\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", metavar="MODEL", help="the model at first (default: built-in)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="port to listen at (default: %(default)s)"
    )
    parser.add_argument("--model-dir", type=Path, metavar="FOLDER", help="models to choose from")
    for kind in ("lora", "embedding", "controlnet", "upscaler"):
        parser.add_argument(
            f"--{kind}-dir", type=Path, metavar="FOLDER", help=f"{kind}s to choose from"
        )
    parser.add_argument(
        "--output-dir", type=Path, metavar="FOLDER", help="write every picture there"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16")
    parser.add_argument(
        "--no-optimize", dest="optimize", action="store_false", default=None, help="compute plainly"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"ldm {__version__}")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "ldm serve") -> int:
    """Entry point; returns the exit code."""
    arguments = parser(prog).parse_args(argv)
    return run(lambda: serve(arguments), arguments.debug)


def serve(arguments: argparse.Namespace) -> None:
    """Serve until Ctrl-C. Raises ArgumentError, LDMError for a port in use."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LDMError(f"ldm serve needs {' and '.join(missing)}: pip install 'ldm[server]'")
    settings = read_settings(arguments)
    listening = bind(settings.host, settings.port)
    import uvicorn

    from ldm.server.app import create_app

    notify(f"loading {settings.model or 'the built-in model'}")
    app = create_app(settings)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    notify(f"http://{host}:{listening.getsockname()[1]}  (Ctrl-C stops it)")
    uvicorn.Server(config).run(sockets=[listening])


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the command's arguments. Raises ArgumentError."""
    from ldm.server.settings import Settings

    model_dir = arguments.model_dir or default_model_dir()
    for name in ("model", "lora", "embedding", "controlnet", "upscaler"):
        folder = getattr(arguments, f"{name}_dir")
        if folder is not None and not folder.is_dir():
            raise ArgumentError(f"--{name}-dir is {str(folder)!r}, which is no folder")
    if not 0 <= arguments.port < 2**16:
        raise ArgumentError(f"--port is {arguments.port}; it must be in [0, 65535]")
    return Settings(
        model=find_model(arguments.model, model_dir),
        model_dir=model_dir,
        lora_dir=arguments.lora_dir,
        embedding_dir=arguments.embedding_dir,
        controlnet_dir=arguments.controlnet_dir,
        upscaler_dir=arguments.upscaler_dir,
        output_dir=arguments.output_dir,
        device=arguments.device,
        dtype=arguments.dtype,
        optimize=arguments.optimize,
        host=arguments.host,
        port=arguments.port,
    )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises LDMError for an address in use or none of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise LDMError(
            f"--port {port} at {host} cannot be listened at ({error.strerror}); if another server "
            f"runs there, stop it or give another --port, such as {port + 1}"
        ) from None
    return listening
