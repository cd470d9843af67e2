"""Log how far a long preparation has come."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

from torch import Tensor

log = logging.getLogger(__name__)
EVERY = 15.0  # seconds between two messages; what is shorter logs none


def counted(parts: Sequence[Tensor], what: str) -> Iterator[Tensor]:
    """Yield the parts of a work, logging how many of their rows are done, and the minutes left.

    what: the work and its rows, such as "encoding pictures".
    """
    total, done = sum(map(len, parts)), 0
    began = said = time.monotonic()
    for part in parts:
        yield part
        done += len(part)
        now = time.monotonic()
        if now - said >= EVERY:
            said, left = now, (now - began) / done * (total - done)
            log.info("%s: %d of %d, %.1f min left", what, done, total, left / 60)
