"""ControlNets and T2I-Adapters on the command line, each with its picture.

``--controlnet PATH[:SCALE]`` with ``--control-image FILE`` or ``--control NAME:FILE``,
``--t2i-adapter PATH[:SCALE] --adapter-image FILE``: ``kind`` says which options are meant.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.source import find_own_controlnet
from ldm.cli.fields import DEFAULTS, filled
from ldm.cli.loras import is_number
from ldm.cli.streams import STREAM, picture_source
from ldm.config.picture_readers import CONTROLNET, T2I_ADAPTER, PictureReader
from ldm.errors import ArgumentError
from ldm.request import arguments_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.control.hints import Hint
    from ldm.control.preprocessed import ControlSource


KINDS = (CONTROLNET, T2I_ADAPTER)


@dataclass(frozen=True)
class Preprocessed:
    """The value of ``--control``: "NAME[,KEY=VALUE]…:FILE"; see ``ldm.control.source``."""

    text: str

    @property
    def source(self) -> ControlSource:
        """What it says. Raises ArgumentError for a text that is wrong."""
        from ldm.control.source import read_control  # not before it is used: it needs NumPy

        return read_control(self.text)

    def __str__(self) -> str:
        return self.text


Control = str | Preprocessed  # one of --control-image, or of --control


def preprocessed(text: str) -> Preprocessed:
    """Read the value of ``--control``."""
    return Preprocessed(filled(text))


def split_scale(text: str, option: str) -> tuple[str, float | None]:
    """Read ``PATH`` or ``PATH:SCALE`` of an option.

    Raises ArgumentError for a scale that is no number.
    """
    if Path(text).exists():
        return text, None
    path, colon, last = text.rpartition(":")
    if not colon or "/" in last or "\\" in last:
        return text, None
    if is_number(last):
        return path, float(last)
    if Path(path).exists():
        raise ArgumentError(
            f"{option}: the scale of {path} is {last!r:.40}; it must be a number, such as 0.8"
        )
    return text, None


def has_scale(texts: list[str], option: str) -> bool:
    """Whether one of the options has a scale behind its path."""
    return any(split_scale(text, option)[1] is not None for text in texts)


def move_scales(arguments: argparse.Namespace) -> None:
    """Move the scales of ``PATH:SCALE`` to the options for scales, which say the same.

    Raises ArgumentError for both.
    """
    for kind in KINDS:
        texts = getattr(arguments, kind.option)
        if not has_scale(texts, kind.flag):
            continue
        if getattr(arguments, kind.scale) is not None:
            raise ArgumentError(
                f"{kind.flag} PATH:SCALE and {kind.scale_flag} say the same; give one"
            )
        pairs = [split_scale(text, kind.flag) for text in texts]
        setattr(arguments, kind.option, [path for path, _ in pairs])
        scales = tuple(1.0 if scale is None else scale for _, scale in pairs)
        setattr(arguments, kind.scale, scales if len(scales) > 1 else scales[0])


def check_control(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError for options of ControlNets and T2I-Adapters that do not go together."""
    for one in arguments.control_image or []:
        if isinstance(one, Preprocessed):
            one.source  # noqa: B018  # a text that is wrong is an error
    for kind in KINDS:
        check_reader(arguments, kind)


def check_reader(arguments: argparse.Namespace, kind: PictureReader) -> None:
    """Raise ArgumentError for options of a kind that do not go together."""
    given: list[Control] = getattr(arguments, kind.image) or []
    loaded = getattr(arguments, kind.option)
    count = len(loaded)
    if not count and given and kind == CONTROLNET and has_own_controlnet(arguments.model):
        count = 1
    if not count:
        for name in arguments_of(kind):
            if getattr(arguments, name) != DEFAULTS[name]:
                option = name.replace("_", "-")
                if given and isinstance(given[0], Preprocessed):
                    option = "control"
                raise ArgumentError(f"--{option} is of a {kind.flag}; give that, too")
    elif len(given) != pictures_of(arguments, count, kind):
        own = "" if loaded else " (the model's own)"
        raise ArgumentError(
            f"there {'is' if count == 1 else 'are'} {count} {kind.flag}{own} and {len(given)} "
            f"{kind.image_flag}; give one picture for each, in the same order"
        )


def pictures_of(arguments: argparse.Namespace, count: int, kind: PictureReader) -> int:
    """Return how many pictures so many networks read: one ControlNet-Union may read several."""
    mode = arguments.control_mode if kind == CONTROLNET else None
    return len(mode) if count == 1 and isinstance(mode, tuple) else count


def has_own_controlnet(model: str | None) -> bool:
    """Whether a model is a folder with a ControlNet in it. None is the built-in one."""
    folder = asset_path("weights") if model is None else Path(model).expanduser()
    return find_own_controlnet(folder) is not None


def given_controls(
    arguments: argparse.Namespace, kind: PictureReader = CONTROLNET
) -> list[Hint] | None:
    """Load the pictures of a kind. Raises ImageError for a file that cannot be read.

    Those of ``--control`` are preprocessed at the size that is drawn, which is not known yet.
    """
    files = getattr(arguments, kind.image)
    return None if not files else list(read_given_controls(tuple(files)))


def all_controls(arguments: argparse.Namespace) -> dict[str, list[Hint] | None]:
    """Load the pictures of every kind, by the request's arguments."""
    return {kind.image: given_controls(arguments, kind) for kind in KINDS}


@functools.lru_cache(maxsize=2 * len(KINDS))
def read_given_controls(files: tuple[Control, ...]) -> tuple[Hint, ...]:
    """Load as ``given_controls``. Clear the cache before a run: files may have changed."""
    return tuple(read_given_control(file) for file in files)


def read_given_control(file: Control) -> Hint:
    """Load one of them. Raises ImageError for a file that cannot be read."""
    from ldm.images import load_image, load_layer

    if not isinstance(file, Preprocessed):
        return load_image(picture_source(file))
    source = file.source
    if str(source.path) == STREAM:
        source = replace(source, path=load_layer(picture_source(STREAM)))
    return source.loaded()


def original(hint: Hint) -> Image:
    """Return a control picture as its file has it: RGB."""
    from PIL.Image import Image

    return hint if isinstance(hint, Image) else hint.original


def labels(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the preprocessor of each control picture: "canny,low=50"; () if there is none."""
    given: list[Control] = arguments.control_image or []
    found = [one.source.label if isinstance(one, Preprocessed) else "" for one in given]
    return tuple(found) if any(found) else ()


def control_option(label: str) -> str:
    """Return the option that gives a picture for a preprocessor; "" for one as it is."""
    return f"--control {label}:FILE" if label else "--control-image FILE"
