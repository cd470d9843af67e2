"""Defaults of the user's own: ``ldm.toml`` in the working folder or the user's, and ``LDM_…``.

    # ldm.toml
    model_dir = "~/models"
    model = "dreamshaper"
    steps = 25

    [serve]
    port = 8000

The table is of ``ldm serve``: see ``ldm.cli.serve_options``. Keys are the names of options. What
the command line gives goes before the environment, that before the working folder's file, and that
before the one in the user's configuration folder, ``$XDG_CONFIG_HOME/ldm/ldm.toml``.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.cli import fields
from ldm.cli.allocator import OPT_OUT
from ldm.cli.fields import ALIASES, SWITCHES
from ldm.cli.options import NAMED, defaults, parser
from ldm.cli.streams import OWN_INPUT
from ldm.config.checking import shown as shown_value
from ldm.config.files import read_limited
from ldm.config.speed import CACHE
from ldm.errors import ArgumentError, did_you_mean

NAME = "ldm.toml"
PREFIX = "LDM_"
SERVE = "serve"  # the table and, as LDM_SERVE_…, the variables of ``ldm serve``
API_KEY = "LDM_API_KEY"  # of it, too
OWN = {OPT_OUT, OWN_INPUT, API_KEY, CACHE}  # variables that are no options
MOST_BYTES = 64 << 10  # dotted keys take quadratic time
# Options that are decisions of a single command.
NOT_HERE = {
    *("prompt", NAMED, "prompts", "from_file", "force", "list_samplers", "version", "x", "y"),
    *("replay", "templates", "all", "control", "save_control"),
}
LISTS = (
    *("lora", "embedding", "text_encoder", "controlnet", "control_image"),
    *("t2i_adapter", "adapter_image"),
    *("ip_adapter", "ip_adapter_image", "ip_adapter_mask"),
)
# "~" in them is the user's folder.
FILES = (
    *("model", "vae", "lora_dir", "model_dir", "image", "mask", "wildcards"),
    *("control_image", "controlnet", "adapter_image", "t2i_adapter", "reference_image"),
    "hires_upscaler",
    *("ip_adapter", "ip_adapter_image", "ip_adapter_mask", "image_encoder"),
)
ON_OFF = {"1": True, "true": True, "yes": True, "on": True}
ON_OFF |= {"0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Setting:
    """A default of the user's: the value of an option, and where it was set."""

    name: str  # as the namespace of the options has it
    value: Any
    origin: str  # "ldm.toml:3", "LDM_STEPS"


def read_settings() -> dict[str, Setting]:
    """Read all defaults, by the options' names.

    Raises ArgumentError for an unknown key or a wrong value, naming the file and the line.
    """
    found: dict[str, Setting] = {}
    for path in (user_file(), Path(NAME)):
        if path.is_file():
            found |= {setting.name: setting for setting in read_file(path)}
    return found | {setting.name: setting for setting in read_environment()}


def default_model_dir() -> Path | None:
    """Return the folder of models that the settings name, if any. Raises as ``read_settings``."""
    setting = read_settings().get("model_dir")
    return setting.value if setting else None


def user_file() -> Path:
    """Return the path of the file in the user's configuration folder."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(folder, "ldm", NAME)


def read_file(path: Path) -> Iterator[Setting]:
    """Yield the settings in a file. Raises ArgumentError as ``read_settings``."""
    text, rows = read_rows(path)
    for key, value in rows.items():
        if key != SERVE or not isinstance(value, dict):
            yield read_setting(key, value, origin_of(path, text, key))


def read_rows(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a file, and what it sets. Raises ArgumentError if it cannot be read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        text = read_limited(path, MOST_BYTES, ArgumentError, "file of settings").decode()
        rows = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ArgumentError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ArgumentError(f"{path} cannot be read: {reason}") from None
    return text, rows


def origin_of(path: Path, text: str, key: str) -> str:
    """Return the file and the line in which a key is set."""
    line = re.search(
        rf"^[ \t]{{0,99}}\[{{0,2}}[ \t]{{0,99}}[\"']?{re.escape(key)}[\"']?[ \t]*[=.\]]",
        text,
        re.M,
    )
    number = text.count("\n", 0, line.start()) + 1 if line else 1
    return f"{path}:{number}"


def read_environment() -> Iterator[Setting]:
    """Yield the settings in ``LDM_…``. Raises ArgumentError for a value that is wrong."""
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith(PREFIX) or variable in OWN or not text:
            continue
        if variable.startswith(f"{PREFIX}{SERVE.upper()}_"):
            continue
        key = variable.removeprefix(PREFIX).lower()
        try:
            find_option(key, variable)
        except ArgumentError as error:  # another program may use the name
            warnings.warn(str(error), stacklevel=1)
        else:
            yield read_setting(key, text, variable)


def read_setting(key: str, value: Any, origin: str) -> Setting:
    """Read a value by the rules of its option. Raises ArgumentError if it has none or is wrong."""
    name = find_option(key, origin)
    if name in LISTS and isinstance(value, list):
        parts = [read_value(name, part, key, origin) for part in value]
        return Setting(name, [item for part in parts for item in part], origin)
    return Setting(name, read_value(name, value, key, origin), origin)


def find_option(key: str, origin: str) -> str:
    """Find the option of a key. Raises ArgumentError, with the nearest one, if there is none."""
    known = {action.dest for action in parser()._actions if action.option_strings}
    known -= NOT_HERE | {argparse.SUPPRESS}
    names = {name: name for name in sorted(known)}
    names |= {
        alias: name for alias, name in ALIASES.items() if name in known and alias[:3] != "no_"
    }
    plain = key.replace("-", "_").lower()
    if plain in names:
        return names[plain]
    if plain in NOT_HERE:
        raise ArgumentError(f"{origin}: {key} is for a single command; give it as an option")
    hint = did_you_mean(plain, list(names))
    if not hint:
        hint = f"keys are the names of options, such as {', '.join(('model', 'steps', 'output'))}"
    raise ArgumentError(f"{origin}: {key} is no setting; {hint}")


def read_value(name: str, value: Any, key: str, origin: str) -> Any:
    """Read a value as its option would. Raises ArgumentError if it is of a wrong kind."""
    if isinstance(switch_default(name), bool) or name in ("optimize", "choices"):
        switch = ON_OFF.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(switch, bool):
            raise ArgumentError(f"{origin}: {key} is {shown_value(value)}; expected true or false")
        return switch
    if isinstance(value, list) and name in fields.LISTS:
        value = ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ArgumentError(f"{origin}: {key} is {shown_value(value)}; expected a text or a number")
    if name in FILES and isinstance(value, str):
        value = os.path.expanduser(value)  # noqa: PTH111  # a hub id is no path
    try:
        found = parser().parse_args([f"--{name.replace('_', '-')}={value}"])
    except ArgumentError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise ArgumentError(f"{origin}: {key}: {reason}") from None
    return getattr(found, name)


def switch_default(name: str) -> object:
    """Return the default of an option; a bool if it is a switch."""
    return False if name in SWITCHES else defaults().get(name)


def with_origin(action: Callable[[], None], settings: Mapping[str, Setting]) -> None:
    """Do a command's work. An error that names an option also says where it was set, if it was."""
    try:
        action()
    except ArgumentError as error:
        message = str(error)
        words = set(re.findall(r"[a-z][a-z_]+", message.replace("-", "_").lower()))
        origins = [
            f"{name} is set by {setting.origin}"
            for name, setting in settings.items()
            if name in words
        ]
        if not origins or any(setting.origin in message for setting in settings.values()):
            raise
        raise ArgumentError(f"{message} ({', '.join(origins)})") from None


def merged(
    arguments: argparse.Namespace, given: Mapping[str, Any], settings: Mapping[str, Setting]
) -> argparse.Namespace:
    """Return arguments with the user's defaults in place of ours. given: on the command line."""
    own = {name: setting.value for name, setting in settings.items() if name not in given}
    if arguments.image is None and "image" not in own:
        own.pop("strength", None)  # it is for images
    return argparse.Namespace(**vars(arguments) | own)


def listing(settings: Mapping[str, Setting], given: Container[str]) -> str | None:
    """Return a line about the defaults that are in use; None if there are none."""
    used = [
        f"{setting.name.replace('_', '-')} {shown(setting.value)} ({setting.origin})"
        for setting in settings.values()
        if setting.name not in given
    ]
    return f"defaults: {', '.join(used)}" if used else None


def shown(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    parts = value if isinstance(value, list | tuple) else [value]
    return ",".join(map(str, parts))
