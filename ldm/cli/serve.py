"""``ldm serve``: a page and HTTP interfaces."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import math
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.checkpoints.model_folder import find_model
from ldm.cli.common import check_counts, importing_torch, run
from ldm.cli.printed import notify
from ldm.cli.serve_options import FOLDERS, parse, parser
from ldm.cli.ways import ways_of
from ldm.config.files import read_limited
from ldm.errors import ArgumentError, LDMError

if TYPE_CHECKING:
    from ldm.server.settings import Limits, Settings

__all__ = ["main", "parser"]
NEEDED = ("fastapi", "prometheus_client", "python_multipart", "uvicorn")
LIMITS = {
    "max_pixels": "pixels",
    "max_steps": "steps",
    "max_pictures": "pictures",
    "max_batch": "batch",
    "max_waiting": "waiting",
    "rate": "rate",
}
MOST_KEY_BYTES = 4096


def main(argv: Sequence[str] | None = None, prog: str = "ldm serve") -> int:
    """Entry point; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: serve(parse(given, prog)), "--debug" in given)


def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ArgumentError, LDMError for a port in use."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LDMError(f"ldm serve needs {' and '.join(missing)}: pip install 'ldm[server]'")
    settings = read_settings(arguments)
    if settings.output_dir is not None:
        check_writable(settings.output_dir)
    listening = bind(settings.host, settings.port)
    with importing_torch():
        from ldm.server.app import create_app
        from ldm.server.serving import serve

    notify(f"loading {settings.model or 'the built-in model'}")
    app = create_app(settings)
    app.state.server.load_first()  # here, where an error is one line and Ctrl-C ends it
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    notify(f"http://{host}:{listening.getsockname()[1]}  (Ctrl-C stops it)")
    serve(app, listening)


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the command's arguments. Raises ArgumentError."""
    from ldm.server.settings import Settings

    for kind in FOLDERS:
        folder = getattr(arguments, f"{kind}_dir")
        if folder is not None and not folder.is_dir():
            raise ArgumentError(f"--{kind}-dir is {str(folder)!r}, which is no folder")
    if not 0 <= arguments.port < 2**16:
        raise ArgumentError(f"--port is {arguments.port}; it must be in [0, 65535]")
    key = read_key(arguments)
    check_access(arguments, key)
    return Settings(
        model=find_model(arguments.model, arguments.model_dir),
        model_dir=arguments.model_dir,
        lora_dir=arguments.lora_dir,
        embedding_dir=arguments.embedding_dir,
        controlnet_dir=arguments.controlnet_dir,
        upscaler_dir=arguments.upscaler_dir,
        output_dir=arguments.output_dir,
        device=arguments.device,
        dtype=arguments.dtype,
        optimize=arguments.optimize,
        ways=ways_of(arguments),
        host=arguments.host,
        port=arguments.port,
        api_key=key,
        allow_hosts=tuple(arguments.allow_host),
        allow_origins=tuple(arguments.allow_origin),
        grace=arguments.grace,
        limits=read_limits(arguments),
    )


def read_limits(arguments: argparse.Namespace) -> Limits:
    """Return the limits. Raises ArgumentError for one that lets nothing through."""
    from ldm.server.settings import Limits

    check_counts(arguments, *(name for name in LIMITS if name != "rate"))
    for name in ("rate", "grace"):
        value = getattr(arguments, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ArgumentError(f"--{name} is {value:g}; it must be at least 0")
    given = {
        ours: getattr(arguments, name)
        for name, ours in LIMITS.items()
        if getattr(arguments, name) is not None
    }
    if "pixels" in given:
        given["side"] = max(Limits.side, math.isqrt(given["pixels"]))
    if "rate" in given:
        given["burst"] = max(1.0, 5 * given["rate"])
    return Limits(**given)


def read_key(arguments: argparse.Namespace) -> str | None:
    """Return the API key. Raises ArgumentError for one that is soon guessed."""
    from ldm.server.keys import SHORTEST

    key: str | None = arguments.api_key
    if arguments.api_key_file is not None:
        content = read_limited(arguments.api_key_file, MOST_KEY_BYTES, ArgumentError, "API key")
        key = content.decode(errors="replace").partition("\n")[0].strip()
    if key is not None and len(key) < SHORTEST:
        raise ArgumentError(f"the API key has {len(key)} characters; give at least {SHORTEST}")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ArgumentError("the API key has characters that no header may have; use ASCII letters")
    return key


def check_access(arguments: argparse.Namespace, key: str | None) -> None:
    """Raise ArgumentError if others could draw without a key, and nobody has said so."""
    from ldm.server.hosts import is_loopback

    if key is not None or arguments.insecure:
        return
    how = "set LDM_API_KEY (or --api-key-file FILE), or add --insecure"
    if not is_loopback(arguments.host):
        raise ArgumentError(
            f"--host {arguments.host} lets every machine of the network draw without a key; {how}"
        )
    if "*" in arguments.allow_origin:
        raise ArgumentError(f"--allow-origin '*' lets every site draw without a key; {how}")
    if "*" in arguments.allow_host:
        raise ArgumentError(f"--allow-host '*' lets rebound names draw without a key; {how}")


def check_writable(folder: Path) -> None:
    """Write a file into a folder, and remove it. Raises LDMError if that fails."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".ldm-") as file:
            file.write(b"ldm")
    except OSError as error:
        raise LDMError(
            f"--output-dir {folder} cannot be written ({error.strerror}); choose another folder"
        ) from None


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises LDMError for an address in use or none of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)  # now, so that a second server of this port fails before it loads
    except (OSError, UnicodeError) as error:
        listening.close()
        number = error.errno if isinstance(error, OSError) else None
        reason = error.strerror if isinstance(error, OSError) else "no name of a machine"
        if number in (None, errno.EADDRNOTAVAIL) or isinstance(error, socket.gaierror):
            raise ArgumentError(
                f"--host {host} is no address of this machine ({reason}); 127.0.0.1 is for this "
                "machine alone, 0.0.0.0 for its networks"
            ) from None
        raise LDMError(
            f"--port {port} at {host} cannot be listened at ({reason}); if another server runs "
            f"there, stop it or give another --port, such as {min(port + 1, 65535)}"
        ) from None
    return listening
