"""Some damaged files for each reader, always the same; ``make fuzz`` tries more."""

import dataclasses
import json
from pathlib import Path

import pytest

from ldm.errors import LDMError
from tests.fuzz.gate import fuzz, try_case
from tests.fuzz.reader import Reader
from tests.fuzz.readers import READERS


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    figures = fuzz(reader, tmp_path, cases=300, seconds=1.0)
    assert not figures.escapes, figures.escapes[0]
    assert figures.cases >= 3


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    reader.surroundings(tmp_path)
    for data in reader.seeds():
        path = tmp_path / reader.file
        path.write_bytes(data)
        reader.read(path)


def test_the_gate_finds_what_escapes(tmp_path: Path) -> None:
    def careless(path: Path) -> None:
        try:
            json.loads(path.read_bytes())["a"]
        except ValueError as error:
            raise LDMError("no JSON") from error

    reader = Reader("careless", lambda: [b'{"a": 1}'], careless)
    assert fuzz(reader, tmp_path, cases=50).escapes

    def greedy(_: Path) -> None:
        bytearray(3 << 30)

    (tmp_path / "case").write_bytes(b"")
    refused, escaped = try_case(dataclasses.replace(reader, read=greedy), tmp_path / "case")
    assert refused and escaped is not None and "MemoryError" in escaped
