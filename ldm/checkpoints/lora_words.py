"""Words in LoRA files: textual inversions that were trained beside a LoRA and saved with it.

OneTrainer calls them ``bundle_emb.WORD.clip_l``, and A1111's web UI also knows
``bundle_emb.WORD.string_to_param.*``; cloneofsimo's lora marks them in the metadata.
Needs no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

BUNDLED = "bundle_emb."
PARAMETERS = ".string_to_param."
MARK = "<embed>"
Words = dict[str, dict[str, str]]  # word → name of the vectors ("clip_l", …) → key in the file


def split_words(
    tensors: Mapping[str, T], metadata: Mapping[str, str]
) -> tuple[Words, dict[str, T]]:
    """Find the words in a file, and the tensors that are none."""
    words: Words = {}
    rest = {}
    for key, value in tensors.items():
        if key.startswith(BUNDLED) and "." in key.removeprefix(BUNDLED):
            name = key.removeprefix(BUNDLED)
            word, _, kind = name.rpartition(PARAMETERS if PARAMETERS in name else ".")
            words.setdefault(word, {})[kind] = key
        elif metadata.get(key) == MARK:
            words.setdefault(key, {})["*"] = key
        else:
            rest[key] = value
    return words, rest
