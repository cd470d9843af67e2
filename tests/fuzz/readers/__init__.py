"""All that is fuzzed, by what is read."""

from __future__ import annotations

from tests.fuzz.reader import Reader
from tests.fuzz.readers.checkpoints import CHECKPOINTS
from tests.fuzz.readers.configs import CONFIGS
from tests.fuzz.readers.pictures import PICTURES
from tests.fuzz.readers.texts import TEXT_READERS

READERS: dict[str, Reader] = {
    reader.name: reader for reader in [*CHECKPOINTS, *CONFIGS, *TEXT_READERS, *PICTURES]
}
