"""Icons in a style that the built-in model never saw, for a LoRA to learn and a judge to know."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import nouns, sources, variants
from .captions import NEW_STYLES
from .nouns import Subject
from .sources import Package

# Dark outlines, bright fills, a gray shadow on the ground; CC-BY 4.0.
PACKAGES = {"streamline-emojis": Package("@iconify-json/streamline-emojis", "1.2.4")}
(SET,) = PACKAGES
WORD = NEW_STYLES[SET]
HELD_OUT = 40  # icons that no training sees


@dataclass(frozen=True)
class NewStyle:
    """The set's icons of everyday things: of training, and for measuring."""

    train: list[Subject]
    held_out: list[Subject]


def read(archives: Path) -> NewStyle:
    """Read the set; names and codes are those of the model's sets and of emojibase.

    Raises BuildError where an archive is missing and cannot be fetched.
    """
    packages = {**sources.SETS, **PACKAGES}
    paths = {name: sources.fetch(package, archives) for name, package in packages.items()}
    subjects = nouns.read_subjects(paths, sources.fetch(sources.EMOJIBASE, archives))
    return split([s for s in subjects if s.icon.set == SET and s.noun])


def split(subjects: list[Subject], held_out: int = HELD_OUT) -> NewStyle:
    """Hold some of the icons out, but at most a third; which ones depends on their order alone."""
    count = min(held_out, len(subjects) // 3)
    out = set(np.random.default_rng(0).permutation(len(subjects))[:count].tolist())
    return NewStyle(
        [s for i, s in enumerate(subjects) if i not in out],
        [s for i, s in enumerate(subjects) if i in out],
    )


def pictures(
    subject: Subject, count: int, size: int, seed: int, word: str = WORD
) -> Iterator[tuple[np.ndarray, variants.Row]]:
    """Yield pictures of an icon, uint8 (size, size, 3), and their rows, as the data set has them.

    Every caption ends in `word`, the style's.
    """
    rng = variants.icon_rng(subject, seed)
    master = sources.render(subject.icon, size + size // 2)
    for _ in range(count):
        yield variants.single(subject, master, size, rng, styled=1.0, style=word)
