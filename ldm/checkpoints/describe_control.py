"""Descriptions of ControlNets and T2I-Adapters: what they are for, and how they are used."""

from __future__ import annotations

import re
from pathlib import Path

from ldm.checkpoints.family import FAMILIES, read_family
from ldm.checkpoints.header import read_header
from ldm.checkpoints.kinds import Shapes
from ldm.checkpoints.notes import Rows
from ldm.checkpoints.t2i_adapter import config_of, diffusers_names, family_names
from ldm.config import read_json
from ldm.config.controlnet import ControlNetConfig
from ldm.config.controlnet_union import MODES, ControlNetUnionConfig, listing
from ldm.config.picture_readers import CONTROLNET, T2I_ADAPTER, PictureReader
from ldm.config.t2i_adapter import CLASS as T2I_CLASS
from ldm.config.t2i_adapter import T2IAdapterConfig
from ldm.errors import CheckpointError

CONFIGS: dict[str, type[ControlNetConfig]] = {
    name: config for config in (ControlNetConfig, ControlNetUnionConfig) for name in config.CLASSES
}
FIRST = re.compile(r"(?:input_hint_block\.0|controlnet_cond_embedding\.conv_in)\.weight$")


def hint_rows(shapes: Shapes) -> Rows:
    """Say what pictures a ControlNet's file reads, and the options."""
    found = next((shape for name, shape in shapes.items() if FIRST.search(name)), None)
    if found is None or len(found) != 4:
        return []
    return use_rows(CONTROLNET, found[1])


def adapter_rows(shapes: Shapes) -> Rows:
    """Say what a T2I-Adapter's file is for, what pictures it reads, and the options."""
    names = diffusers_names(shapes)
    try:
        config = config_of(Path(), {names[name]: shape for name, shape in shapes.items()})
    except CheckpointError:  # damaged, or none that is known: there is no more to say
        return []
    return [("for", family_names(config.places)), *use_rows(T2I_ADAPTER, config.in_channels)]


def use_rows(kind: PictureReader, channels: int, place: str = "FILE") -> Rows:
    """Say what a network reads, and with which options it is used."""
    return [
        ("reads", f"pictures of {channels} channels"),
        ("use", f"{kind.flag} {place} {kind.image_flag} PICTURE"),
    ]


def find_reader(folder: Path) -> PictureReader | None:
    """Return the kind of network that a folder, as diffusers writes it, holds alone."""
    path = folder / "config.json"
    name = read_json(path).get("_class_name") if path.is_file() else None
    kinds = {**dict.fromkeys(CONFIGS, CONTROLNET), T2I_CLASS: T2I_ADAPTER}
    return kinds.get(str(name))


def describe_reader_folder(folder: Path, kind: PictureReader) -> Rows:
    """Describe the folder of a ControlNet or a T2I-Adapter.

    Raises CheckpointError for one that is broken.
    """
    path = folder / "config.json"
    counts = [
        sum(info.count for info in read_header(file).tensors.values())
        for file in sorted(folder.glob("*.safetensors"))[:1]
    ]
    weights = [("weights", f"{count / 1e6:.1f}M parameters") for count in counts]
    if kind == T2I_ADAPTER:
        adapter = T2IAdapterConfig.from_file(path)
        rows: Rows = [("folder", str(folder)), ("kind", kind.name)]
        rows.append(("for", family_names(adapter.places)))
        return [*rows, *weights, *use_rows(kind, adapter.in_channels, "FOLDER")]
    config = CONFIGS[read_json(path)["_class_name"]].from_file(path)
    union = isinstance(config, ControlNetUnionConfig)
    width = config.cross_attention_dim or 0
    known = read_family(FAMILIES[width]).name if width in FAMILIES else f"texts of width {width}"
    name = "ControlNet-Union" if union else kind.name
    rows = [("folder", str(folder)), ("kind", name), ("for", known)]
    if config.global_pool_conditions:
        rows.append(("adds", "means over all pixels, to the prompt's rows"))
    if isinstance(config, ControlNetUnionConfig):
        rows.append(("--control-mode", listing(MODES[: config.num_control_type])))
    return [*rows, *weights, *use_rows(kind, config.conditioning_channels, "FOLDER")]
