"""All that is fuzzed, by what is read."""

from __future__ import annotations

from tests.fuzz.reader import Reader
from tests.fuzz.readers.checkpoints import CHECKPOINTS
from tests.fuzz.readers.data import DATA
from tests.fuzz.readers.runs import RUNS

READERS: dict[str, Reader] = {reader.name: reader for reader in [*CHECKPOINTS, *DATA, *RUNS]}
