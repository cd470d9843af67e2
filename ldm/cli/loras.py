"""LoRAs on the command line: ``--lora FILE[:SCALE]`` and ``<lora:name:0.8>`` in prompts."""

from __future__ import annotations

from pathlib import Path

from ldm.adapters.lora_scale import TagScale
from ldm.checkpoints.source import file_of_lora
from ldm.errors import ArgumentError
from ldm.text.lora_tags import Tag, read_scale, write_tag

ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin")

LoraUse = tuple[Path, TagScale]


def lora_option(text: str) -> LoraUse:
    """Read ``FILE``, ``FILE:SCALE`` or ``FILE:TE:UNET``, as in a tag; a run's folder is its file.

    Raises ArgumentError for a scale that is no number, CheckpointError for another folder.
    """
    file = text
    scales: list[float] = []
    while len(scales) < 2 and not Path(file).exists():
        before, colon, last = file.rpartition(":")
        if not colon or "/" in last or "\\" in last or (scales and not is_number(last)):
            break
        file, scales = before, [read_scale(last, text), *scales]
    path = file_of_lora(Path(file))
    return path, TagScale(*scales * (3 - len(scales))) if scales else TagScale()


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def lora_tag(path: Path, scale: TagScale) -> str:
    """Write a LoRA as a tag, for the prompt in a picture's file."""
    return write_tag(Tag(path.stem, *scale))


def find_lora(name: str, folder: Path) -> Path:
    """Find the file that a tag names, in ``folder`` or below it, by its name or its path there.

    Capitals count only where there are two. Raises ArgumentError for none.
    """
    known = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    name = name.replace("\\", "/")
    for same in (str, str.lower):
        for path in known:
            inside = path.relative_to(folder)
            names = (path.stem, path.name, inside.as_posix(), inside.with_suffix("").as_posix())
            if same(name) in map(same, names):
                return path
    shown = ", ".join(path.stem for path in known[:5]) or "none"
    raise ArgumentError(
        f"<lora:{name}>: {folder} has no such file (there are: {shown}); choose another --lora-dir"
    )
