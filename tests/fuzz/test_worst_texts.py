"""The worst texts of each reader: a megabyte takes linear time, or is refused by a stated limit."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.errors import LDMError
from ldm.text.chunks import cut
from ldm.text.lora_tags import split_tags
from tests.fuzz.readers import READERS
from tests.fuzz.readers.texts import tokenizer
from tests.helpers.timing import check_linear

QUARTER, WHOLE = 1 << 18, 1 << 20
FLOOR = 2.0  # seconds of the processor; what takes less is not slow
WORST: dict[str, list[tuple[str, str]]] = {  # reader → (what it begins with, what is repeated)
    "prompt": [
        ("", "("), ("", "[a:b:"), ("", "[a|"), ("", "(a:1.1)"), ("", "AND:1 "), ("", "\\"),
        ("(a:", "1"), ("", "<lora:"), ("", "< lora"), ("", "<lora:a:1>"), ("", "[[a]:1]"),
        ("", " "), ("", "\u0301"), ("", "BREAK "), ("", ":."), ("[a:b:", "1"),
    ],
    "choices": [
        ("", "{"), ("", "{a|"), ("", "__a"), ("", "_"), ("", "{2$$a|b}"), ("{2$$", "a"),
        ("", "{1-"), ("", "__*"), ("{", " "), ("", "{::"),
    ],
    "wildcards": [("", "#"), ("", " #"), ("a", " "), ("", "a #\n"), ("", "{a|b}\n"), ("", "\n")],
    "prompts file": [("", "a\n"), ("", "{\n"), ("", '{"prompt":"a"}'), ("{", "["), ("", "\x00")],
    "prompts in JSON": [('{"prompt": "', "a"), ("", "["), ("", '{"a":'), ('{"seed": ', "9")],
    "ldm.toml": [
        ("", "a."), ("", "[a]\n"), ("a=", "["), ("a=", "{a="), ("", "#"), ("", " "),
        ("steps=", "9"), ('model="', "a"), ("", "[[a]]\n"), ("a='''", "\n"),
    ],
    "options": [
        ("x=sampler=", ","), ("x=prompt=", "a,"), ("output=", "{seed}"), ("output=", "{"),
        ("control=canny", ",low=1"), ("seed=", "9"), ("control-scale=", "1,"), ("sampler=", "a"),
        ("lora=", "a:"), ("control=", ":"), ("outpaint=", "1,"), ("control-mode=", "a,"),
    ],
    "vocab.json": [("", "["), ("{", '"a":{'), ("", "9")],
    "merges.txt": [("", "a b\n"), ("", "a"), ("", "\n"), ("", "a a\n")],
    "tokenizer_config.json": [("", "["), ('{"pad_token": "', "a"), ('{"model_max_length": ', "9")],
    "config of unet": [("", "["), ('{"block_out_channels": [', "8,"), ('{"in_channels": ', "9")],
    "config of scheduler": [('{"trained_betas": [', "0.1,"), ("", '{"a":'), ('{"beta_end": ', "9")],
    "model index": [('{"id2label": {"0": "', "a,"), ("", "[")],
    "settings of web UI": [("", "a: "), ("", ","), ("", '"'), ("ab: ", "["), ("", "Steps: 1, ")],
    "settings of ComfyUI": [('{"1": {"class_type": "', "a"), ("", "["), ("", '{"class_type":')],
}  # fmt: skip


def seconds(action: Callable[[], object]) -> float:
    """Return the processor's time of a reader that may refuse."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            action()
        except LDMError as error:
            assert len(str(error)) < 2000
    return time.process_time() - start


@pytest.mark.parametrize("name", WORST)
def test_time_is_linear(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.surroundings(tmp_path)
    path = tmp_path / reader.file
    for start, unit in WORST[name]:

        def of_size(size: int, start: str = start, unit: str = unit) -> float:
            path.write_bytes((start + unit * (size // len(unit.encode()))).encode())
            return seconds(lambda: reader.read(path))

        check_linear(of_size, QUARTER, FLOOR, WHOLE)


@pytest.mark.parametrize("unit", ["a", "é", "ab", "1", "!", "\u0301", "a ", "<|endoftext|>"])
def test_one_long_word(unit: str) -> None:
    """The longest text that a prompt may be, as one word of the byte-pair encoding."""

    def of_size(size: int) -> float:
        return seconds(lambda: cut(tokenizer(), unit * (size // len(unit))))

    check_linear(of_size, 25_000, FLOOR)


@pytest.mark.parametrize("unit", ["<lora:", "<lora:a:1>", "<", "< ", "< lora", "<lora ", ">", "<l"])
def test_tags(unit: str) -> None:
    assert seconds(lambda: split_tags(unit * (WHOLE // len(unit)))) < FLOOR
