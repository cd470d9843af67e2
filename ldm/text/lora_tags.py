"""LoRA tags in prompts: ``<lora:name:0.8>``, as A1111's web UI and its LyCORIS extension read them.

``<lora:name:te:unet>``, ``<lora:name:te=0.5:unet=0.8>``, ``<lyco:…>``, in capitals or not: the
U-Net's scale is the text encoder's unless it is given, and that is 1 unless it is given. Whatever
else begins like a tag is refused: drawn as words, it would change the picture in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ldm.errors import ArgumentError

BEGIN = re.compile(r"<\s*(lora|lyco|hypernet)\b(?!-)", re.IGNORECASE)
MOST_LETTERS = 1000  # of a tag, and of what is shown of it
SCALES = ("te", "unet")
# What other programs' tags may say besides, and what it means.
OTHERS = {
    "lbw": "block weights", "lbwe": "block weights", "w": "block weights",
    "start": "steps", "stop": "steps", "step": "steps",
    "dyn": "the rank of a DyLoRA",
}  # fmt: skip


class Tag(NamedTuple):
    """A LoRA that a prompt names."""

    name: str
    text_encoder: float = 1.0
    unet: float = 1.0


def split_tags(prompt: str) -> tuple[str, list[Tag]]:
    """Split a prompt into its text and its tags. Raises ArgumentError for a tag of another form."""
    tags, kept, end = [], [], 0
    for begin, stop in places(prompt):
        tags.append(read_tag(prompt[begin:stop]))
        kept.append(prompt[end:begin])
        end = stop
    if not tags:
        return prompt, []
    return re.sub(r" {2,}", " ", "".join([*kept, prompt[end:]])).strip(), tags


def places(prompt: str) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each tag. Raises ArgumentError for one that does not end."""
    end = 0
    while found := BEGIN.search(prompt, end):
        begin = found.start()
        end = prompt.find(">", begin, begin + MOST_LETTERS) + 1
        if not end or "<" in prompt[begin + 1 : end]:
            raise ArgumentError(f"{shown(prompt[begin:])} does not end; write <lora:name:0.8>")
        yield begin, end


def read_tag(text: str) -> Tag:
    """Read ``<lora:name:…>``. Raises ArgumentError for any other form."""
    kind, *items = (item.strip() for item in text.strip("<> ").split(":"))
    if kind.lower() == "hypernet":
        raise ArgumentError(f"{shown(text)}: hypernetworks are not supported; leave it out")
    if kind.lower() not in ("lora", "lyco") or not items or not items[0]:
        raise ArgumentError(f"{shown(text)} names no LoRA; write <lora:name:0.8>")
    name, *items = items
    plain = [item for item in items if "=" not in item]
    named: dict[str, str] = {}
    for item in items:
        if "=" in item:
            key, _, value = item.partition("=")
            key = key.strip().lower()
            if key not in SCALES or key in named:
                raise ArgumentError(f"{shown(text)}: {refusal(key, named)}")
            named[key] = value
    if len(plain) > len(SCALES):
        raise ArgumentError(
            f"{shown(text)} has {len(plain)} scales; expected at most two, of the text encoder and "
            "of the U-Net"
        )
    for key, value in zip(SCALES, plain, strict=False):
        named.setdefault(key, value)
    text_encoder = read_scale(named.get("te", "1"), text)
    unet = read_scale(named["unet"], text) if "unet" in named else text_encoder
    return Tag(name, text_encoder, unet)


def write_tag(tag: Tag) -> str:
    """Write a tag, as ``read_tag`` reads it: with one scale where both are the same."""
    scales = dict.fromkeys([tag.text_encoder, tag.unet])
    return f"<lora:{':'.join([tag.name, *(repr(float(s)).removesuffix('.0') for s in scales)])}>"


def refusal(key: str, named: dict[str, str]) -> str:
    """Say why a tag may not have this setting."""
    if key in named:
        return f"{key} is given twice"
    what = f"{key}= ({OTHERS[key]})" if key in OTHERS else f"{key[:40]}="
    return f"{what} is not supported; te= and unet= are"


def read_scale(text: str, where: str) -> float:
    """Read a scale. Raises ArgumentError for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        hint = "must be a number, such as 0.8; block weights are not supported"
        raise ArgumentError(f"the scale of {shown(where)} is {text[:80]!r}; it {hint}")
    return value


def refuse_tags(text: str, name: str) -> None:
    """Raise ArgumentError if a text has a tag where none is read; ``name``: the argument."""
    if found := BEGIN.search(text):
        raise ArgumentError(
            f"the {name} has {shown(text[found.start() :])}, which would be drawn as words; load "
            "the file with load_lora_weights, or name it in ldm-generate's prompt, and leave it "
            "out here"
        )


def shown(text: str) -> str:
    """Return the beginning of a tag, for messages."""
    end = text.find(">") + 1 or len(text)
    return repr(text[: min(end, 80)])
