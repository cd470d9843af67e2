"""Descriptions of model files and folders, from names, shapes and metadata alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from ldm.checkpoints.backbones import find_backbone, is_backbone
from ldm.checkpoints.describe_control import adapter_rows, hint_rows
from ldm.checkpoints.describe_ip_adapter import ip_adapter_rows
from ldm.checkpoints.distilled import distilled_name, original_names, structure_of
from ldm.checkpoints.family import (
    FAMILIES,
    LATENT,
    UNET,
    VAE,
    Family,
    detect,
    other_task,
    read_family,
)
from ldm.checkpoints.formats import GGUF, PICKLE, find_format, usual_format
from ldm.checkpoints.gguf_header import read_gguf_header
from ldm.checkpoints.header import Header, TensorInfo, read_header
from ldm.checkpoints.kinds import (
    Shapes,
    find_adapter,
    find_other,
    is_embedding,
    listed,
)
from ldm.checkpoints.lora_first import plain_names
from ldm.checkpoints.lora_kinds import describe_kinds, group, rank_of, unsupported
from ldm.checkpoints.lora_names import text_width
from ldm.checkpoints.lora_words import split_words
from ldm.checkpoints.notes import TAGS, Rows, clean, notes
from ldm.checkpoints.pickle_header import read_pickle_header
from ldm.checkpoints.prediction import Beside, find_statements, read_beside
from ldm.config import UNetConfig, read_json
from ldm.config.tasks import TASK_NAMES, task_of
from ldm.errors import CheckpointError

DTYPE_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
SAFE = ".safetensors"
MOST_ITEMS = 20  # of vectors and words that are listed
UNKNOWN = "unknown"
TEXT_KEYS = re.compile(
    r"(?:attn2[._]to_[kv]|\.to_[kv]_ip)\.weight$"
)  # of layers that read the text
# Of a VAE's decoder, whose inputs are the latents.
FIRST_LAYERS = {
    "VAE": re.compile(r"(?:^|\.)decoder\.conv_in\.weight$"),
    "TAESD": re.compile(r"^(?:(?:taesd_)?decoder\.(?:layers\.0|1)|1)\.weight$"),
}
BASE_KEYS = ("ss_base_model_version", "modelspec.architecture", "general.architecture")
# What the metadata call a base, in whatever spelling.
BASES = {
    r"flux": "Flux (not supported)",
    r"sd-?3|stable-diffusion-3|stable-diffusion-v3": "Stable Diffusion 3 (not supported)",
    r"refiner": "Stable Diffusion XL refiner",
    r"sdxl|xl-v1|stable-diffusion-xl": "Stable Diffusion XL",
    r"sd_?v?2|stable-diffusion-v2": "Stable Diffusion 2.x",
    r"sd_?v?1|stable-diffusion-v1": "Stable Diffusion 1.x",
}
# By the widths of an embedding's vectors.
EMBEDDINGS = {
    frozenset({768}): "Stable Diffusion 1.x",
    frozenset({1024}): "Stable Diffusion 2.x",
    frozenset({1280}): "Stable Diffusion XL refiner",
    frozenset({768, 1280}): "Stable Diffusion XL",
}


def describe(path: Path) -> Rows:
    """Describe a folder or a file of any kind, row by row.

    Raises CheckpointError for a file that cannot be read.
    """
    if path.is_dir():
        return describe_folder(path)
    kind, step = find_format(path), None
    if kind == PICKLE:
        header, step = read_pickle_header(path)
    else:
        header = read_gguf_header(path) if kind == GGUF else read_header(path)
    rows: Rows = [("file", f"{path}, {size(path.stat().st_size)}")]
    if kind != usual_format(path):
        rows.append(("format", f"{kind}, in spite of its name"))
    elif kind == GGUF:
        rows.append(("format", kind))
    return [*rows, *describe_header(header, path, step, read_beside(path))]


def describe_folder(folder: Path) -> Rows:
    """Describe the parts of a diffusers folder."""
    index = read_json(folder / "model_index.json")
    rows: Rows = [("folder", str(folder)), ("kind", str(index.get("_class_name")))]
    for name in sorted(path.name for path in folder.iterdir() if path.is_dir()):
        files = sorted((folder / name).glob(f"*{SAFE}"))
        # A variant, such as model.fp16.safetensors, counts only if there is nothing else.
        files = [file for file in files if file.name.count(".") == 1] or files
        infos = [info for file in files for info in read_header(file).tensors.values()]
        pickles = sum(file.stat().st_size for file in (folder / name).glob("*.bin"))
        if infos:
            rows.append((name, amount(infos)))
        elif pickles:
            rows.append((name, f"{size(pickles)} of pickles"))
    unet = read_json(folder / "unet" / "config.json", optional=True)
    if unet and (config := read_unet(unet)) and (name := family_name(config)):
        rows[2:2] = [("family", name), *describe_layers(config)]
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", optional=True)
    if scheduler:
        rows.append(("sampler", str(scheduler.get("_class_name"))))
        rows.append(("prediction type", str(scheduler.get("prediction_type", "epsilon"))))
        if str(variance := scheduler.get("variance_type")).startswith("learned"):
            rows.append(("variance", str(variance)))
    if isinstance(names := index.get("id2label"), dict):
        shown = ", ".join(map(str, list(names.values())[:TAGS]))
        rows.append(("classes", f"{len(names)}: {shown}{', …' * (len(names) > TAGS)}"))
    return rows


def read_unet(values: dict[str, Any]) -> UNetConfig | None:
    """Read a U-Net's config; None for one that is not supported, which loading names."""
    try:
        return UNetConfig.from_dict(values)
    except CheckpointError:
        return None


def describe_header(
    header: Header, path: Path, global_step: int | None = None, beside: Beside | None = None
) -> Rows:
    """Describe a single file: its kind, and what is worth knowing about that kind."""
    shapes = {name: info.shape for name, info in header.tensors.items()}
    return describe_tensors(header, shapes, path, global_step, beside) + notes(header.metadata)


def describe_tensors(
    header: Header, shapes: Shapes, path: Path, global_step: int | None, beside: Beside | None
) -> Rows:
    """Describe a file by the names and shapes in it: the first kind that they fit."""
    weights = ("weights", amount(header.tensors.values()))
    names = listed(shapes)
    if f"{UNET}input_blocks.0.0.weight" in shapes:
        return describe_model(header, path, global_step, beside)
    if adapter := find_adapter(names):
        more = hint_rows(shapes) if adapter.name == "Control-LoRA" else []
        if adapter.name == "IP-Adapter" and (known := ip_adapter_rows(shapes)):
            model = [] if known[0][0] == "for" else [("for", base_of(header))]
            return [("kind", adapter.name), *model, *known, weights]
        return [("kind", adapter.name), ("for", base_of(header)), weights, *more]
    if kinds := adapter_kinds(header):
        return describe_lora(header, kinds)
    if is_embedding(shapes):
        vectors = shortened(
            f"{math.prod(shape[:-1])} × {shape[-1]}" if shape else "none"
            for shape in shapes.values()
        )
        widths = {shape[-1] for shape in shapes.values() if shape}
        base = EMBEDDINGS.get(frozenset(widths), UNKNOWN)
        return [("kind", "textual inversion"), ("for", base), ("vectors", vectors)]
    other = find_other(names)
    if other and other.name == "U-Net" and (rows := describe_unet(header, path, beside)):
        return rows
    if other:
        rows = [("kind", f"{other.name}{channels_of(other.name, shapes)}")]
        if is_backbone(other.name):
            rows = [("kind", f"model of {other.name} (not supported)")]
        elif other.name in ("ControlNet", "U-Net", "motion module"):
            rows.append(("for", base_of(header)))
        reader_rows = {"ControlNet": hint_rows, "T2I-Adapter": adapter_rows}.get(other.name)
        return [*rows, weights, *(reader_rows(shapes) if reader_rows else [])]
    return [("kind", UNKNOWN), weights]


def describe_unet(header: Header, path: Path, beside: Beside | None) -> Rows:
    """Describe a U-Net alone, of original names or diffusers'; [] for one that is not whole."""
    infos = header.tensors
    if "conv_in.weight" in infos:
        infos = original_names(infos, {name: info.shape for name, info in infos.items()})
    if "input_blocks.0.0.weight" not in infos:
        return []
    whole = {f"{UNET}{name}" if "." in name else name: info for name, info in infos.items()}
    rows = describe_model(Header(whole, header.metadata), path, None, beside)
    weights = ("weights", amount(header.tensors.values()))
    return [("kind", "U-Net"), ("for", rows[0][1]), weights, *rows[1:]]


def base_of(header: Header, lora: bool = False) -> str:
    """Name the model that a part or an adapter is for: by its layers, else by its metadata."""
    shapes = {name: info.shape for name, info in header.tensors.items()}
    width = next(
        (shape[1] for name, shape in shapes.items() if TEXT_KEYS.search(name) and len(shape) == 2),
        text_width(group(header.tensors)[0]) or 0,
    )
    if width in FAMILIES:
        return read_family(FAMILIES[width]).name
    if backbone := find_backbone(listed(shapes), lora):
        return f"{backbone} (not supported)"
    stated = " ".join(header.metadata.get(key, "") for key in BASE_KEYS).lower()
    for pattern, name in BASES.items():
        if re.search(pattern, stated):
            return f"{name} (by its metadata)"
    if any("lora_te2_" in name or "text_encoder_2." in name for name in shapes):
        return read_family("sdxl").name
    return UNKNOWN


def channels_of(kind: str, shapes: Shapes) -> str:
    """Return how many channels a VAE's latents have if they are not Stable Diffusion's four."""
    if kind not in FIRST_LAYERS:
        return ""
    places = (
        shape
        for name, shape in shapes.items()
        if FIRST_LAYERS[kind].search(name) and len(shape) > 1
    )
    channels = next((shape[1] for shape in places), 4)
    return f" of {channels} channels (another model's)" if channels != 4 else ""


def describe_model(
    header: Header, path: Path, global_step: int | None, beside: Beside | None = None
) -> Rows:
    """Describe a file with a U-Net under the original names."""
    shapes = {name: info.shape for name, info in header.tensors.items()}
    try:
        family = detect(shapes, header.metadata, str(path), global_step, beside=beside)
    except CheckpointError as error:
        return describe_unsupported(header, str(error).removeprefix(str(path)).lstrip(": "))
    prefixes = {"unet": UNET, "vae": VAE} | {text.part: text.prefix for text in family.texts}
    name = family_name(family.unet) or family.name
    rows: Rows = [("kind", name), *describe_layers(family.unet)]
    for part, prefix in prefixes.items():
        infos = [info for name, info in header.tensors.items() if name.startswith(prefix)]
        option = "--vae" if part == "vae" else "--text-encoder"
        rows.append((part, amount(infos) if infos else f"missing: {option} supplies it"))
    known = tuple(prefixes.values())
    if any(name.startswith("model_ema.") for name in shapes):
        rows.append(("averaged copy", "yes: --ema takes it"))
    rest = [info for name, info in header.tensors.items() if not name.startswith(known)]
    if rest:
        rows.append(("other tensors", amount(rest)))
    rows += describe_prediction(family, header, beside)
    if family.scheduler.rescale_betas_zero_snr:
        rows.append(("zero terminal SNR", "yes"))
    return rows


def family_name(unet: UNetConfig) -> str:
    """Name the family of a U-Net, and what is special about it; "" for an unknown family."""
    base = FAMILIES.get(unet.cross_attention_dim or 0)
    if base is None:
        return ""
    task = task_of(unet.in_channels, LATENT)
    words = [
        read_family(base).name,
        distilled_name(structure_of(unet)),
        None if task in (None, "text") else TASK_NAMES[task],
        "LCM" if unet.time_cond_proj_dim else None,
    ]
    return ", ".join(filter(None, words))


def describe_layers(unet: UNetConfig) -> Rows:
    """Count the transformer blocks of each layer, if they are not the family's."""
    base = FAMILIES.get(unet.cross_attention_dim or 0)
    own = structure_of(unet)
    if base is None or own == structure_of(read_family(base).unet):
        return []
    down, up = (
        " | ".join(" ".join(map(str, level)) for level in way) for way in (own.down, own.up)
    )
    middle = "none" if own.middle is None else own.middle
    return [("transformer blocks", f"down {down}; middle {middle}; up {up}")]


def describe_prediction(family: Family, header: Header, beside: Beside | None) -> Rows:
    """Say what a U-Net predicts, by which statement, and which others contradict it."""
    kind = family.scheduler.prediction_type
    if not family.certain:
        return [("prediction type", f"{kind} (a guess: the file does not say)")]
    statements = find_statements(header.tensors, header.metadata, beside)
    rows = [("prediction type", kind)]
    if statements:
        others = (one for one in statements if one.value != kind)
        against = "".join(f"; but {one.source} says {clean(one.value)}" for one in others)
        rows.append(("stated by", statements[0].source + against))
    return rows


def describe_unsupported(header: Header, reason: str) -> Rows:
    """Describe a U-Net that is not supported: why, and what it is built like."""
    shapes = {name: info.shape for name, info in header.tensors.items()}
    task = other_task(shapes)
    base = base_of(header)
    kind = f"{base}: {task}" if task else base
    return [
        ("kind", f"{kind} (not supported)"),
        ("reason", reason),
        ("weights", amount(header.tensors.values())),
    ]


def adapter_kinds(header: Header) -> list[str]:
    """List the adapters that a file holds: "LoRA", "DoRA", or unsupported ones; often none."""
    groups, unknown = group(plain_names(header.tensors))
    kinds = describe_kinds(groups)
    return kinds + [f"{kind} (not supported)" for kind in unsupported(unknown)]


def describe_lora(header: Header, kinds: list[str]) -> Rows:
    """Describe what a LoRA, or another adapter of these ``kinds``, changes, and its family."""
    words, tensors = split_words(plain_names(header.tensors), header.metadata)
    groups, unknown = group(tensors)
    others = {stem for stems in unsupported(unknown).values() for stem in stems.values()}
    parts = Counter(part_of(name) for name in {*groups, *others})
    ranks = Counter(rank for factors in groups.values() if (rank := rank_of(factors)))
    rows = [
        ("kind", " with ".join(kinds)),
        ("for", base_of(header, lora=True)),
        ("layers", ", ".join(f"{count} of the {part}" for part, count in sorted(parts.items()))),
        ("rank", ", ".join(str(rank) for rank, _ in ranks.most_common(4)) or "unknown"),
        ("weights", amount(header.tensors.values())),
    ]
    return [*rows, ("words", shortened(words))] if words else rows


def shortened(items: Iterable[str]) -> str:
    """List the first of some items."""
    first = list(islice(items, MOST_ITEMS + 1))
    return ", ".join(first[:MOST_ITEMS]) + ", …" * (len(first) > MOST_ITEMS)


def part_of(name: str) -> str:
    """Return the part of the model that a LoRA's tensor is for."""
    if name.startswith(("lora_te2_", "text_encoder_2.")):
        return "text encoder 2"
    if name.startswith(("lora_te", "text_encoder.")):
        return "text encoder"
    return "U-Net"


def amount(infos: Iterable[TensorInfo]) -> str:
    """Count parameters, and name their formats: "859.5M parameters, float16"."""
    infos = list(infos)
    dtypes: Counter[str] = Counter()
    for info in infos:
        block = "Q" in info.dtype or "FP4" in info.dtype  # GGUF's block types, as people write them
        name = info.dtype if block else info.dtype.lower()
        dtypes[DTYPE_NAMES.get(info.dtype, name)] += info.count
    kinds = " and ".join(name for name, _ in dtypes.most_common())
    return f"{sum(info.count for info in infos) / 1e6:.1f}M parameters, {kinds}"


def size(count: int) -> str:
    """Write a number of bytes for users: "4.27 GB"."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            return f"{count / power:.3g} {unit}"
    return f"{count} bytes"
