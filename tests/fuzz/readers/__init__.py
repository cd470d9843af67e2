"""All that is fuzzed, by what is read."""

from __future__ import annotations

from tests.fuzz.reader import Reader
from tests.fuzz.readers.checkpoints import CHECKPOINTS
from tests.fuzz.readers.configs import CONFIGS
from tests.fuzz.readers.data import DATA
from tests.fuzz.readers.pictures import PICTURES
from tests.fuzz.readers.runs import RUNS
from tests.fuzz.readers.texts import TEXT_READERS
from tests.fuzz.readers.weights import WEIGHTS

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in [*CHECKPOINTS, *WEIGHTS, *CONFIGS, *TEXT_READERS, *PICTURES, *DATA, *RUNS]
}
