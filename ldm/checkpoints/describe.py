"""Descriptions of model files and folders, from names, shapes and metadata alone.

They need no PyTorch, unless the file is a pickle.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from ldm.checkpoints.family import FAMILIES, UNET, VAE, detect, read_family
from ldm.checkpoints.header import Header, TensorInfo, read_header
from ldm.checkpoints.lora_first import plain_names
from ldm.checkpoints.lora_kinds import describe_kinds, group, rank_of, unsupported
from ldm.checkpoints.lora_names import text_width
from ldm.checkpoints.lora_words import split_words
from ldm.config import read_json
from ldm.errors import CheckpointError

DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
Rows = list[tuple[str, str]]  # what, value
# Metadata that users look for, by the names that kohya and the model spec give it.
METADATA_LABELS = {
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.license": "licence",
    "modelspec.trigger_phrase": "trigger phrase",
    "modelspec.resolution": "resolution",
    "ss_output_name": "name",
    "ss_sd_model_name": "trained on",
    "ss_base_model_version": "base model",
    "ss_num_epochs": "epochs",
    "ss_steps": "steps",
    "modelspec.hash_sha256": "hash (metadata)",
    "sshs_model_hash": "hash (metadata)",
}
SAFE = ".safetensors"
TAGS = 8  # most frequent training tags, and classes, to show


def describe(path: Path) -> Rows:
    """Describe a folder or a file of any kind, row by row.

    Raises CheckpointError for a file that cannot be read.
    """
    if path.is_dir():
        return describe_folder(path)
    header, step = (read_header(path), None) if path.suffix == SAFE else read_pickle_header(path)
    file = ("file", f"{path}, {size(path.stat().st_size)}")
    return [file, *describe_header(header, path, step)]


def read_pickle_header(path: Path) -> tuple[Header, int | None]:
    """Read the same from a PyTorch pickle, and its training step; this needs PyTorch.

    Raises CheckpointError as ``read_checkpoint`` does.
    """
    from ldm.checkpoints.tensors import read_checkpoint, read_embedding

    try:
        tensors, metadata, step = read_checkpoint(path)
    except CheckpointError as error:
        try:
            (tensors, _), metadata, step = read_embedding(path), {}, None
        except CheckpointError:
            raise error from None
    kinds = {name: kind for kind, name in DTYPE_NAMES.items()}
    infos = {}
    for name, value in tensors.items():
        kind = str(value.dtype).removeprefix("torch.")
        infos[name] = TensorInfo(kinds.get(kind, kind), tuple(value.shape))
    return Header(infos, metadata), step


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


def describe_header(header: Header, path: Path, global_step: int | None = None) -> Rows:
    """Describe a single file: its kind, and what is worth knowing about that kind."""
    shapes = {name: info.shape for name, info in header.tensors.items()}
    if f"{UNET}input_blocks.0.0.weight" in shapes:
        rows = describe_model(header, path, global_step)
    elif kinds := adapter_kinds(header):
        rows = describe_lora(header, kinds)
    elif "emb_params" in shapes or {"clip_l", "clip_g"} & set(shapes) or len(shapes) == 1:
        widths = ", ".join(f"{shape[0]} × {shape[-1]}" for shape in shapes.values())
        rows = [("kind", "textual inversion"), ("vectors", widths)]
    elif any(name.removeprefix(VAE).startswith("decoder.") for name in shapes):
        rows = [("kind", "VAE"), ("weights", amount(header.tensors.values()))]
    else:
        rows = [("kind", "unknown"), ("weights", amount(header.tensors.values()))]
    notes = [
        (name, header.metadata[key])
        for key, name in METADATA_LABELS.items()
        if key in header.metadata
    ]
    return rows + notes


def describe_model(header: Header, path: Path, global_step: int | None) -> Rows:
    """Describe a whole model under the original names."""
    shapes = {name: info.shape for name, info in header.tensors.items()}
    family = detect(shapes, header.metadata, str(path), global_step)
    prefixes = {"unet": UNET, "vae": VAE} | {text.part: text.prefix for text in family.texts}
    channels = family.unet.in_channels
    task = {9: ", inpainting"}.get(channels, "")
    task += ", LCM" if family.unet.time_cond_proj_dim else ""
    rows: Rows = [("kind", f"{family.name}{task}")]
    for part, prefix in prefixes.items():
        infos = [info for name, info in header.tensors.items() if name.startswith(prefix)]
        rows.append((part, amount(infos) if infos else "missing"))
    known = tuple(prefixes.values())
    if any(name.startswith("model_ema.") for name in shapes):
        rows.append(("averaged copy", "yes: --ema takes it"))
    rest = [info for name, info in header.tensors.items() if not name.startswith(known)]
    if rest:
        rows.append(("other tensors", amount(rest)))
    guess = "" if family.certain else " (a guess: the file does not say)"
    rows.append(("prediction type", family.scheduler.prediction_type + guess))
    if family.scheduler.rescale_betas_zero_snr:
        rows.append(("zero terminal SNR", "yes"))
    return rows


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
    family = FAMILIES.get(text_width(groups) or 0)
    rows: Rows = [
        ("kind", " with ".join(kinds)),
        ("for", read_family(family).name if family else "unknown"),
        ("layers", ", ".join(f"{count} of the {part}" for part, count in sorted(parts.items()))),
        ("rank", ", ".join(str(rank) for rank, _ in ranks.most_common(4)) or "unknown"),
        ("weights", amount(header.tensors.values())),
    ]
    if words:
        rows.append(("words", ", ".join(words)))
    if tags := frequent_tags(header.metadata):
        rows.append(("tags", ", ".join(tags)))
    return rows


def part_of(name: str) -> str:
    """Return the part of the model that a LoRA's tensor is for."""
    if name.startswith(("lora_te2_", "text_encoder_2.")):
        return "text encoder 2"
    if name.startswith(("lora_te", "text_encoder.")):
        return "text encoder"
    return "U-Net"


def frequent_tags(metadata: Mapping[str, str]) -> list[str]:
    """Return the tags that kohya counted in a LoRA's training captions, most frequent first."""
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        tags: Counter = Counter()
        for counts in folders.values():
            tags.update({str(tag).strip(): int(count) for tag, count in counts.items()})
    except (ValueError, TypeError, AttributeError):
        return []  # a free-form note, in whatever form a tool wrote it
    return [tag for tag, _ in tags.most_common(TAGS)]


def amount(infos: Iterable[TensorInfo]) -> str:
    """Count parameters, and name their formats: "859.5M parameters, float16"."""
    infos = list(infos)
    dtypes: Counter[str] = Counter()
    for info in infos:
        dtypes[DTYPE_NAMES.get(info.dtype, info.dtype.lower())] += info.count
    kinds = " and ".join(name for name, _ in dtypes.most_common())
    return f"{sum(info.count for info in infos) / 1e6:.1f}M parameters, {kinds}"


def size(count: int) -> str:
    """Write a number of bytes for users: "4.27 GB"."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= power:
            return f"{count / power:.3g} {unit}"
    return f"{count} bytes"
