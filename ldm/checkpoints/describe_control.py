"""Descriptions of ControlNets: what model they are for, and how they are used."""

from __future__ import annotations

import re
from pathlib import Path

from ldm.checkpoints.family import FAMILIES, read_family
from ldm.checkpoints.header import read_header
from ldm.checkpoints.kinds import Shapes
from ldm.checkpoints.notes import Rows
from ldm.config import read_json
from ldm.config.controlnet import ControlNetConfig
from ldm.config.controlnet_union import MODES, ControlNetUnionConfig, listing

CONFIGS: dict[str, type[ControlNetConfig]] = {
    name: config for config in (ControlNetConfig, ControlNetUnionConfig) for name in config.CLASSES
}
USE = ("use", "--controlnet FILE --control-image PICTURE")
FIRST = re.compile(r"(?:input_hint_block\.0|controlnet_cond_embedding\.conv_in)\.weight$")


def hint_rows(shapes: Shapes) -> Rows:
    """Say what pictures a ControlNet's file reads, and the options."""
    found = next((shape for name, shape in shapes.items() if FIRST.search(name)), None)
    if found is None or len(found) != 4:
        return []
    return [("reads", f"pictures of {found[1]} channels"), USE]


def is_controlnet_folder(folder: Path) -> bool:
    """Whether a folder is a ControlNet's, as diffusers writes it."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("_class_name") in CONFIGS


def describe_controlnet_folder(folder: Path) -> Rows:
    """Describe the folder of a ControlNet. Raises CheckpointError for one that is broken."""
    path = folder / "config.json"
    config = CONFIGS[read_json(path)["_class_name"]].from_file(path)
    union = isinstance(config, ControlNetUnionConfig)
    width = config.cross_attention_dim or 0
    known = read_family(FAMILIES[width]).name if width in FAMILIES else f"texts of width {width}"
    counts = [
        sum(info.count for info in read_header(file).tensors.values())
        for file in sorted(folder.glob("*.safetensors"))[:1]
    ]
    kind = "ControlNet-Union" if union else "ControlNet"
    rows: Rows = [("folder", str(folder)), ("kind", kind), ("for", known)]
    if config.global_pool_conditions:
        rows.append(("adds", "means over all pixels, to the prompt's rows"))
    rows.append(("reads", f"pictures of {config.conditioning_channels} channels"))
    if isinstance(config, ControlNetUnionConfig):
        rows.append(("--control-mode", listing(MODES[: config.num_control_type])))
    rows += [("weights", f"{count / 1e6:.1f}M parameters") for count in counts]
    return [*rows, (USE[0], USE[1].replace("FILE", "FOLDER", 1))]
