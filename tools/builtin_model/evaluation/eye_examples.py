"""Icons of faces and animals with and without their eyes: what the judge of eyes learns from."""

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation import eye_shapes, other_sets
from tools.builtin_model.evaluation.examples import known_nouns
from tools.builtin_model.icons import sources, variants
from tools.builtin_model.icons.nouns import Subject

SIDE = 96  # pixels that the judge looks at
SCALE = 0.92  # of the icon, as the data builder draws those held out
SUBGROUPS = ("face-", "cat-face", "monkey-face", "animal-")  # of Unicode; people's are too small
# Insects' eyes are hardly to be seen in icons, and the judge takes spots and stripes for eyes.
NOT_ASKED = "animal-bug"
SPOTTED = frozenset({"giraffe", "leopard", "zebra"})
# A noun is asked about if icons mostly show it with two eyes: a horse from the side has one.
MIN_ICONS, MOSTLY = 3, 0.6
OUT = 10  # of the sets that are not the data's, one icon in so many is kept for measuring
SOFT = 0.75  # pixels over which the edge of a region without an eye fades


@dataclass(frozen=True)
class EyeExamples:
    """Icons on white, as they are and without eyes."""

    nouns: list[str]
    pictures: Tensor  # uint8 (N, 3, SIDE, SIDE)
    without: Tensor  # uint8 (N, 3, SIDE, SIDE): without both
    regions: Tensor  # float32 (N, 2, SIDE, SIDE) in [0, 1]: of the left and of the right eye

    def compose(self, chosen: Tensor, gone: Tensor) -> Tensor:
        """Pictures `chosen` (B,) without the left or right eyes that are `gone`, bool (B, 2)."""
        hidden = (self.regions[chosen] * gone[:, :, None, None]).amax(1, keepdim=True)
        with_eyes, without = self.pictures[chosen].float(), self.without[chosen].float()
        return torch.lerp(with_eyes, without, hidden).round().to(torch.uint8)


@dataclass(frozen=True)
class Read:
    """Icons to learn from, and those to measure the judge with."""

    known: EyeExamples
    held_out: EyeExamples
    eyeless: np.ndarray  # uint8 (N, SIDE, SIDE, 3): held-out icons of these nouns without a find


def read(data: CaptionedImages, archives: Path, log: Callable[[str], None]) -> Read:
    """Icons of the data's sets and of more, of nouns that are mostly shown with two eyes.

    Held out are the data's held-out icons and a part of the other sets'; earlier drawings of the
    data's are left out. Raises ArgumentError for a package that cannot be had.
    """
    every = [s for s in other_sets.read(archives) if s.noun]
    faces = face_nouns(every, archives) & set(known_nouns(data))
    subjects = [s for s in every if variants.name_of(s) in faces]
    out = other_sets.held_out(data)
    own = [s for s in subjects if s.icon.set in sources.SETS]
    others = other_sets.apart(subjects, out)
    kept = [s for s in own if (s.icon.set, s.icon.name) in out]
    kept += [s for s in others if zlib.crc32(s.icon.name.encode()) % OUT == 0]
    found = with_eyes([s for s in [*own, *others] if s not in kept], log)
    nouns = mostly_with_eyes([s for s in own if s not in kept], [s for s, _ in found])
    kept = [s for s in kept if variants.name_of(s) in nouns]
    measured = with_eyes(kept, log)
    there = [s for s, _ in measured]
    eyeless = [on_white(s.icon) for s in kept if s not in there]
    return Read(
        drawn((s, eyes) for s, eyes in found if variants.name_of(s) in nouns),
        drawn(measured),
        np.stack(eyeless) if eyeless else np.empty((0, SIDE, SIDE, 3), np.uint8),
    )


def face_nouns(subjects: list[Subject], archives: Path) -> set[str]:
    """Nouns of which an icon is a face or an animal by Unicode's subgroups, without insects."""
    labels = sources.read_labels(sources.fetch(sources.EMOJIBASE, archives))
    of_icons = ((variants.name_of(s), labels.get(s.icon.hexcode or "")) for s in subjects)
    nouns: dict[str, set[str]] = {}
    for noun, label in of_icons:
        if label:
            nouns.setdefault(noun, set()).add(label.subgroup)
    return {
        noun
        for noun, groups in nouns.items()
        if noun not in SPOTTED
        and NOT_ASKED not in groups
        and any(group.startswith(SUBGROUPS) for group in groups)
    }


def with_eyes(
    subjects: list[Subject], log: Callable[[str], None]
) -> list[tuple[Subject, eye_shapes.Eyes]]:
    """Keep the icons whose eyes are found, with these."""
    found = []
    for number, subject in enumerate(subjects, 1):
        if eyes := eye_shapes.find_eyes(subject.icon):
            found.append((subject, eyes))
        if number % 200 == 0 or number == len(subjects):
            log(f"  eyes found in {len(found)} of {number}/{len(subjects)} icons")
    return found


def mostly_with_eyes(subjects: list[Subject], found: list[Subject]) -> set[str]:
    """Nouns of MIN_ICONS or more icons of which MOSTLY or more are among those `found`."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    there = {(s.icon.set, s.icon.name) for s in found}
    for subject in subjects:
        count = counts[variants.name_of(subject)]
        count[0] += (subject.icon.set, subject.icon.name) in there
        count[1] += 1
    return {n for n, (hits, of) in counts.items() if of >= MIN_ICONS and hits >= MOSTLY * of}


def drawn(rows: Iterable[tuple[Subject, eye_shapes.Eyes]]) -> EyeExamples:
    """Draw the icons on white."""
    nouns, pictures, without, regions = [], [], [], []
    for subject, eyes in rows:
        nouns.append(variants.name_of(subject))
        pictures.append(on_white(subject.icon))
        without.append(on_white(eyes.without))
        regions.append(regions_of(eyes))
    if not nouns:
        raise ArgumentError("no icon of a face or an animal has two eyes that can be found")
    stacked = (torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2) for x in (pictures, without))
    return EyeExamples(nouns, *stacked, torch.from_numpy(np.stack(regions)))


def on_white(icon: sources.Icon) -> np.ndarray:
    """Draw the icon in the middle of white: uint8 (SIDE, SIDE, 3)."""
    side = round(SIDE * SCALE)
    canvas = np.full((SIDE, SIDE, 3), 255, np.uint8)
    variants.paste(canvas, np.asarray(sources.render(icon, side)), *[(SIDE - side) // 2] * 2)
    return canvas


def regions_of(eyes: eye_shapes.Eyes) -> np.ndarray:
    """Discs around the eyes in the picture of ``on_white``: float32 (2, SIDE, SIDE) in [0, 1]."""
    side = round(SIDE * SCALE)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5 - (SIDE - side) // 2
    away = [np.hypot(x - cx, y - cy) for cx, cy in eyes.middles * side]
    radii = eyes.radii[:, None, None] * side
    return ((radii + SOFT - np.stack(away)) / (2 * SOFT)).clip(0, 1).astype(np.float32)
