"""Files of another kind than the option that they were given as: errors that name the right one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ldm.checkpoints.family import UNET
from ldm.checkpoints.kinds import (
    OPTIONS,
    article,
    find_adapter,
    find_other,
    is_embedding,
    listed,
)
from ldm.checkpoints.lora_first import plain_names
from ldm.checkpoints.lora_kinds import describe_kinds, group
from ldm.config.picture_readers import PictureReader
from ldm.errors import CheckpointError


def refuse_other(
    path: Path, shapes: Mapping[str, tuple[int, ...]], wanted: PictureReader, supported: str
) -> None:
    """Raise CheckpointError for a file that is not what was wanted, with what to do with it.

    supported: says what is, for what has no option.
    """
    names = listed(shapes)
    wanted_name = f"not a {wanted.name}"
    if f"{UNET}input_blocks.0.0.weight" in shapes:
        raise CheckpointError(
            f"{path} is a model, {wanted_name}; give it as the model: --model FILE"
        )
    kind = find_adapter(names)
    if kind is None and (loras := describe_kinds(group(plain_names(shapes))[0])):
        raise CheckpointError(f"{path} is a {loras[0]}, {wanted_name}; give it as --lora FILE")
    if kind is None and is_embedding(shapes):
        raise CheckpointError(
            f"{path} is a textual inversion, {wanted_name}; give it as --embedding FILE"
        )
    kind = kind or find_other(names)
    if kind is None:
        shown = ", ".join(list(shapes)[:3]) or "nothing"
        raise CheckpointError(f"{path} is {wanted_name}: it holds {shown}, …")
    option = OPTIONS.get(kind.name, wanted.flag)
    way = supported if option.startswith(wanted.flag) else f"give it as {option}"
    what = f"{kind.name} of another model" if kind.name == wanted.name else kind.name
    raise CheckpointError(f"{path} is {article(what)}, {wanted_name} of these models; {way}")
