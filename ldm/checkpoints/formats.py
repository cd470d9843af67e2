"""The format of a weight file, told by its first bytes: people's files have all kinds of names."""

from __future__ import annotations

import struct
from pathlib import Path

from ldm.checkpoints.header import MOST_BYTES
from ldm.errors import CheckpointError

SAFETENSORS, GGUF, PICKLE = "safetensors", "GGUF", "pickle"
SAFE_ENDINGS = (".safetensors", ".sft")
IP_ADAPTER = ("image_proj", "ip_adapter")  # the two tables of an IP-Adapter's pickle
HEAD = 512  # bytes that are looked at
# What downloads leave in the place of a model: the bytes that each begins with.
FOREIGN = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it: git lfs pull",
    b"<": "a web page, not a model; download it again, logged in if the site wants that",
    b"\x89PNG": "a PNG picture, not a model",
    b"\xff\xd8\xff": "a JPEG picture, not a model",
    b"RIFF": "a WebP picture or a sound, not a model",
    b"7z\xbc\xaf": "an archive, not a model; unpack it",
    b"Rar!": "an archive, not a model; unpack it",
    b"\x1f\x8b": "an archive, not a model; unpack it",
    b"\x89HDF": "a file of Keras, which is not supported; get the model's .safetensors version",
    b"ggml": "a file in the format before GGUF, which is not supported; get a .safetensors version",
}


def find_format(path: Path) -> str:
    """Find the format of a file: SAFETENSORS, GGUF or PICKLE; its name counts only if bytes do not.

    Raises CheckpointError for a file that cannot be read or is of a kind that is no weight file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    if head.startswith(b"GGUF"):
        return GGUF
    if len(head) > 8 and head[8:].lstrip()[:1] == b"{":
        (length,) = struct.unpack("<Q", head[:8])
        if length <= min(MOST_BYTES, size - 8):
            return SAFETENSORS
    if head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
        return PICKLE
    start = head.lstrip()
    for magic, what in FOREIGN.items():
        if (start if magic == b"<" else head).startswith(magic):
            raise CheckpointError(f"{path} is {what}")
    return usual_format(path)


def usual_format(path: Path) -> str:
    """Return the format that a file's name promises."""
    ending = path.suffix.lower()
    if ending in SAFE_ENDINGS:
        return SAFETENSORS
    return GGUF if ending == ".gguf" else PICKLE
