"""The pictures that ControlNets and T2I-Adapters read: as a user gives them → tensors.

Both kinds take the same forms; ``kind`` says which arguments of a request are meant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from ldm.config.checking import differs
from ldm.config.controlnet_union import PREPROCESSED, listing, read_mode
from ldm.config.picture_readers import CONTROLNET, PictureReader
from ldm.control.control_lllite import ControlLLLite, Network, check_lllite_size
from ldm.control.preprocessed import ControlSource
from ldm.control.steering import ControlUse
from ldm.control.union import ControlNetUnion
from ldm.control.union_use import UnionUse
from ldm.errors import ArgumentError
from ldm.images.files import load_image
from ldm.images.inputs import File, pictures_to_tensor, read_pictures
from ldm.request import Request, arguments_of

Hint = Image | ControlSource
Rows = Tensor | list[Hint]  # one picture for all prompts, or one for each


class Pictures(NamedTuple):
    """The pictures of one network; a ControlNet-Union may have several."""

    rows: list[Rows]
    modes: tuple[int, ...] = ()  # of a ControlNet-Union, the kind of each


def read_hints(
    networks: Mapping[str, object], request: Request, kind: PictureReader = CONTROLNET
) -> list[Pictures | None]:
    """Load the pictures of each network, in order; None for one at scale 0 without pictures.

    Raises ArgumentError for a number of pictures that does not fit the networks, or if no network
    is loaded, ImageError for what cannot be read.
    """
    if not networks:
        refuse_unused(request, kind)
        return []
    if getattr(request, kind.image) is None:
        if any(per_network(kind.scale, getattr(request, kind.scale), len(networks), kind)):
            raise ArgumentError(
                f"{kind.image} is missing, which {' and '.join(networks)} would read; give it, or "
                f"{kind.unload}(name) (image is what to start from, also for {kind.name}s)"
            )
        return [None] * len(networks)
    return [
        Pictures([load_rows(one, len(request.prompts), kind) for one in sources], modes)
        for sources, modes in split_pictures(networks, request, kind)
    ]


def control_uses(
    networks: Mapping[str, Network],
    request: Request,
    hints: Sequence[Pictures | None],
    size: tuple[int, int],
) -> list[ControlUse]:
    """Return how each network is used in a run at (height, width), with pictures of that size.

    Raises ArgumentError for pictures of another number of channels, for values that are not
    numbers, and for a range without steps.
    """
    given = {
        "controlnet_conditioning_scale": request.controlnet_conditioning_scale,
        "control_guidance_start": request.control_guidance_start,
        "control_guidance_end": request.control_guidance_end,
    }
    counts = [len(hint.rows) if hint else 1 for hint in hints]
    values = [per_picture(name, value, counts) for name, value in given.items()]
    uses: list[ControlUse] = []
    for network, hint, *numbers in zip(networks.values(), hints, *values, strict=True):
        each = []
        for index, (scale, start, end) in enumerate(zip(*numbers, strict=True)):
            if start >= end:
                raise ArgumentError(
                    f"control_guidance_start is {start:g} and control_guidance_end {end:g}; the "
                    "start must be less"
                )
            if isinstance(network, ControlLLLite) and scale:
                check_lllite_size(network, size)
            if hint is not None:
                channels = network.config.conditioning_channels
                rows = to_size(hint.rows[index], size, channels, request.repeats)
                each.append(ControlUse(network, rows, scale, start, end))
        if hint is not None:
            uses += [UnionUse.of(each, hint.modes)] if hint.modes else each
    return uses


def per_picture(
    name: str, value: float | Sequence[float], counts: Sequence[int]
) -> list[list[float]]:
    """Return an argument's value for each picture of each network.

    counts: pictures of each network. A list has a value for each network, or, of one network, for
    each of its pictures.
    """
    if len(counts) == 1 and isinstance(value, Sequence) and len(value) == counts[0]:
        return [[float(one) for one in value]]
    each = per_network(name, value, len(counts))
    return [[one] * count for one, count in zip(each, counts, strict=True)]


def split_pictures(
    networks: Mapping[str, object], request: Request, kind: PictureReader = CONTROLNET
) -> list[tuple[list[Any], tuple[int, ...]]]:
    """Return for each network the sources of its pictures, and the kinds of a ControlNet-Union.

    Each source is of one picture for all prompts, or a list of one for each.
    Raises ArgumentError for numbers of pictures and modes that do not fit.
    """
    modes = modes_of_each(request.control_mode if kind == CONTROLNET else None, networks)
    grouped = any(isinstance(mode, list | tuple) for mode in modes)
    sources = split_sources(getattr(request, kind.image), len(networks), kind, grouped)
    found: list[tuple[list[Any], tuple[int, ...]]] = []
    for (name, network), source, mode in zip(networks.items(), sources, modes, strict=True):
        if not isinstance(network, ControlNetUnion):
            found.append(([source], ()))
            continue
        several = isinstance(mode, list | tuple)
        if mode is None and isinstance(source, list | tuple) and len(request.prompts) == 1:
            several = True  # each is preprocessed, and says what kind it is
        pictures = list(source) if several and isinstance(source, list | tuple) else [source]
        kinds = list(mode) if isinstance(mode, list | tuple) else [mode] * len(pictures)
        if len(kinds) != len(pictures):
            raise ArgumentError(
                f"control_image holds {len(pictures)} pictures for {len(kinds)} values of "
                f"control_mode of {name}; give one picture for each"
            )
        count = network.config.num_control_type
        pairs = zip(kinds, pictures, strict=True)
        found.append((pictures, tuple(read_mode(find_mode(*pair, name), count) for pair in pairs)))
    return found


def modes_of_each(mode: Any, networks: Mapping[str, object]) -> list[Any]:
    """Return the control_mode of each network: a kind, a list of kinds, or None.

    Raises ArgumentError for another number, and for one of a network that is no ControlNet-Union.
    """
    count = len(networks)
    listed = isinstance(mode, list | tuple)
    if count > 1 and listed and len(mode) != count:
        raise ArgumentError(
            f"control_mode holds {len(mode)} values for {count} ControlNets; give one for each, "
            "None for one that is no ControlNet-Union"
        )
    each = list(mode) if count > 1 and listed else [mode] * count
    unions = [isinstance(network, ControlNetUnion) for network in networks.values()]
    for i, (name, union) in enumerate(zip(networks, unions, strict=True)):
        alone = listed or not any(unions)
        if not union and each[i] not in (None, "none") and alone:
            raise ArgumentError(
                f"control_mode is {each[i]!r:.40}, but {name} is no ControlNet-Union, and reads "
                "pictures of one kind; leave it out"
            )
    return [None if one == "none" else one for one in each]


def find_mode(mode: Any, source: Any, name: str) -> Any:
    """Return the kind of a picture: as given, else as it is preprocessed.

    Raises ArgumentError if neither says it.
    """
    first = source[0] if isinstance(source, list | tuple) and source else source
    if mode is None and isinstance(first, ControlSource):
        mode = PREPROCESSED.get(first.name)
    if mode is None:
        raise ArgumentError(
            f"control_mode is missing: {name} is a ControlNet-Union; say what the picture is: "
            f"{listing()}"
        )
    return mode


def refuse_unused(request: Request, kind: PictureReader) -> None:
    """Raise ArgumentError for arguments of a kind of which none is loaded."""
    for name in arguments_of(kind):
        value = getattr(request, name)
        if value is not None and differs(value, getattr(Request, name)):
            raise ArgumentError(
                f"{name} is of a {kind.name}, and none is loaded: {kind.load}(path), or "
                f"{kind.flag} FILE"
            )


def per_network(
    name: str, value: float | Sequence[float], count: int, kind: PictureReader = CONTROLNET
) -> list[float]:
    """Return an argument's value for each of ``count`` networks."""
    if not isinstance(value, Sequence):
        return [float(value)] * count
    if len(value) != count:
        raise ArgumentError(
            f"{name} has {len(value)} values for {kind.counted(count)}; give one, or one for each"
        )
    return [float(one) for one in value]


def split_sources(
    source: Any, count: int, kind: PictureReader = CONTROLNET, grouped: bool = False
) -> list[Any]:
    """Return the pictures of each of ``count`` networks; see ``Request.control_image``.

    grouped: whether lists in the list are the pictures of a network, not those of a prompt.
    """
    if count == 1:
        return [source]
    if not isinstance(source, list | tuple):
        raise ArgumentError(
            f"{kind.image} is one picture for {kind.counted(count)}; give a list, in their order"
        )
    given = len(source)
    if not grouped and any(isinstance(one, list | tuple) for one in source):  # of each prompt
        if not all(isinstance(one, list | tuple) and len(one) == len(source[0]) for one in source):
            raise ArgumentError(
                f"{kind.image} holds lists of different lengths; give for each prompt a list of "
                f"{count} pictures"
            )
        source = [list(one) for one in zip(*source, strict=True)]
        given = len(source)
    if given != count:
        raise ArgumentError(
            f"{kind.image} holds {given} pictures for {kind.counted(count)}; give one for each, in "
            "the order of loading"
        )
    return list(source)


def load_rows(source: Any, prompts: int, kind: PictureReader = CONTROLNET) -> Rows:
    """Read the pictures of one network: one for all prompts, or one for each."""
    is_list = isinstance(source, list | tuple)
    parts = list(source) if is_list else [source]
    if parts and all(torch.is_tensor(part) and part.is_floating_point() for part in parts):
        return read_tensor(parts, prompts, kind)
    pictures = read_pictures(source, kind.image, prompts, 1, load_hint)  # type: ignore[arg-type]
    assert pictures is not None
    return [*pictures]


def load_hint(source: File | ControlSource) -> Hint:
    """Load a picture as RGB, or one to preprocess as it is."""
    return source.loaded() if isinstance(source, ControlSource) else load_image(source)


def read_tensor(parts: Sequence[Tensor], prompts: int, kind: PictureReader) -> Tensor:
    """Stack tensors (C, H, W) or (b, C, H, W) of floats: float32 (1 or prompts, C, H, W)."""
    shapes = ", ".join(str(tuple(part.shape)) for part in parts)
    rows = [part[None] if part.ndim == 3 else part for part in parts]
    if any(row.ndim != 4 or not row.numel() or row.shape[1:] != rows[0].shape[1:] for row in rows):
        raise ArgumentError(f"{kind.image} has the shape {shapes}; expected (b, 3, H, W)")
    found = torch.cat([row.detach().float().cpu() for row in rows])
    if len(found) not in (1, prompts):
        raise ArgumentError(
            f"{kind.image} holds {len(found)} pictures for {prompts} prompts; give one, or one "
            "for each"
        )
    if not bool(((found >= kind.least) & (found <= 1)).all()):  # so written, NaN is refused too
        marks = f", or {kind.least:g} for what an inpainting {kind.name} fills in"
        raise ArgumentError(
            f"{kind.image} has values from {found.min():g} to {found.max():g}; expected [0, 1]"
            f"{marks if kind.least else ''}"
        )
    return found


def hint_size(hints: Sequence[Pictures | None]) -> tuple[int, int] | None:
    """Return the (height, width) of the first picture; None without one."""
    for rows in (pictures.rows[0] for pictures in hints if pictures is not None):
        if isinstance(rows, Tensor):
            return rows.shape[2], rows.shape[3]
        first = rows[0].original if isinstance(rows[0], ControlSource) else rows[0]
        return first.height, first.width
    return None


def to_size(
    rows: Rows,
    size: tuple[int, int],
    channels: int,
    repeats: int,
    kind: PictureReader = CONTROLNET,
) -> Tensor:
    """Return pictures (1 or B, channels, H, W) of a size; one for each prompt is repeated."""
    if not isinstance(rows, Tensor):
        if channels not in (1, 3):
            raise ArgumentError(
                f"{kind.image} is a picture of 3 channels, but this {kind.name} reads {channels}; "
                f"give a tensor (b, {channels}, H, W)"
            )
        rows = torch.cat([picture_to_tensor(row, size, channels) for row in rows])
    elif rows.shape[1] != channels:
        raise ArgumentError(
            f"{kind.image} has {rows.shape[1]} channels; this {kind.name} reads {channels}"
        )
    elif rows.shape[2:] != size:
        rows = F.interpolate(rows, size)  # the nearest values: -1 stays a mark
    return rows if len(rows) == 1 else rows.repeat_interleave(repeats, dim=0)


def picture_to_tensor(picture: Hint, size: tuple[int, int], channels: int) -> Tensor:
    """Return one picture, preprocessed if it is to be: float32 (1, channels, H, W) in [0, 1]."""
    found = picture.hint(size) if isinstance(picture, ControlSource) else picture
    if isinstance(found, Tensor):
        return found[:, :channels]
    return pictures_to_tensor([found], *size, channels) / 2 + 0.5


def expand_hints(
    request: Request, networks: Mapping[str, object], kind: PictureReader = CONTROLNET
) -> Any:
    """Return the pictures of the networks with one for each picture to draw.

    For a request with a prompt for each picture, in the form of diffusers: lists by prompts.
    """
    given = getattr(request, kind.image)
    if given is None or not networks:
        return given
    prompts, every = len(request.prompts), []
    mode = request.control_mode if kind == CONTROLNET else None
    for pictures in read_hints(networks, request, kind):
        assert pictures is not None  # as there are pictures
        each = [
            [row for row in rows for _ in range(request.repeats * (prompts // len(rows)))]
            for rows in pictures.rows
        ]
        listed = isinstance(mode, list | tuple) and len(networks) == 1
        every.append(each if len(each) > 1 or listed else each[0])
    if len(networks) == 1:
        return every[0]
    modes = modes_of_each(mode, networks)
    grouped = any(isinstance(mode, list | tuple) for mode in modes)
    return every if grouped else [list(one) for one in zip(*every, strict=True)]
