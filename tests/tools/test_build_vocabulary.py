"""The tokenizer folder that `tools/builtin_model/build_vocabulary.py` writes."""

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from tools.builtin_model import build_vocabulary

FOLDER = Path(__file__).parents[2] / "weights" / "tokenizer"


def test_stored_folder_is_what_the_tool_writes() -> None:
    version, *merges = (FOLDER / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert version == "#version: 0.2"
    files = build_vocabulary.tokenizer_files(merges)
    assert {path.name for path in FOLDER.iterdir()} == set(files)
    for name, text in files.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, name


def test_vocabulary_has_clip_s_ids() -> None:
    vocabulary = json.loads((FOLDER / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(49_408))
    known = {"!": 0, "a</w>": 320, "of</w>": 539, "photo</w>": 1125, "cat</w>": 2368}
    known |= {"<|startoftext|>": 49_406, "<|endoftext|>": 49_407}
    assert {token: vocabulary[token] for token in known} == known


@pytest.mark.parity
def test_transformers_reads_the_folder() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER)
    ids = tokenizer("a photo of a cat", padding="max_length")["input_ids"]
    assert ids == [49_406, 320, 1125, 539, 320, 2368, *[49_407] * 71]
