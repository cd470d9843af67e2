"""The names and shapes in PyTorch's pickles (.ckpt, .pt, .bin), without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ldm.checkpoints.formats import IP_ADAPTER
from ldm.checkpoints.header import Header, TensorInfo
from ldm.checkpoints.lora_first import keys_of_list
from ldm.checkpoints.pickle_content import parameters_of, read_contents, tensors_of
from ldm.checkpoints.pickle_tensors import PickledTensor
from ldm.checkpoints.plain import check_mapping


def read_pickle_header(path: Path) -> tuple[Header, int | None]:
    """Read the names and shapes in a pickle, and the training step of a checkpoint.

    Vectors of an embedding have their names, and factors of a bare list the first LoRAs' keys.
    Raises CheckpointError as ``read_contents`` does, and for one that holds no tensors.
    """
    content = read_contents(path).value
    step = content.get("global_step") if isinstance(content, Mapping) else None
    found = tensors_of(content)
    if isinstance(content, list) and len(content) % 2 == 0:
        found = dict(zip(keys_of_list(len(content)), content, strict=True))
    elif isinstance(content, Mapping) and "string_to_param" in content:
        found = parameters_of(content["string_to_param"])
    elif isinstance(content, Mapping) and all(
        isinstance(content.get(table), Mapping) for table in IP_ADAPTER
    ):
        found = {f"{t}.{name}": value for t in IP_ADAPTER for name, value in content[t].items()}
    tensors = check_mapping(path, found, PickledTensor)
    infos: dict[str, TensorInfo] = {name: value.info for name, value in tensors.items()}
    return Header(infos, {}), step if isinstance(step, int) else None
