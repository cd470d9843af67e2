"""More real icons for the classifier: of sets that the model never sees.

Five styles of a thing are few to know a sixth by. Two of the sets are CC-BY-SA, and so no part of
the model's data; the classifier, which is trained where it is used, is not given away.
"""

from pathlib import Path

import numpy as np
import torch

from ldm.errors import ArgumentError
from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation import classifier
from tools.builtin_model.evaluation.examples import Examples
from tools.builtin_model.icons import new_style, nouns, sources, variants
from tools.builtin_model.icons.sources import Package

SETS = {
    "openmoji": Package("@iconify-json/openmoji", "1.2.29"),
    "noto-v1": Package("@iconify-json/noto-v1", "1.2.5"),
    "emojione-v1": Package("@iconify-json/emojione-v1", "1.2.3"),
    **new_style.PACKAGES,
    "fxemoji": Package("@iconify-json/fxemoji", "1.2.2"),
}
LATER = {"noto-v1": "noto", "emojione-v1": "emojione"}  # sets that redrew one of these
PICTURES = 8  # of an icon, in several colours and on several backgrounds
SIZE = 96  # pixels at which they are drawn
SEED = 0


def examples(data: CaptionedImages, known: set[str], archives: Path) -> Examples:
    """Pictures of the icons of `known` nouns, made as the data builder makes its own.

    Raises ArgumentError where a package can neither be found in `archives` nor fetched.
    """
    subjects = [s for s in read(archives) if s.noun and s.noun.noun in known]
    pictures, things = [], []
    for subject in apart(subjects, held_out(data)):
        rng = variants.icon_rng(subject, SEED)
        master = sources.render(subject.icon, SIZE + SIZE // 2)
        drawn = [variants.alone(subject, master, SIZE, rng) for _ in range(PICTURES)]
        pictures.append(classifier.shrink(np.stack([picture for picture, _, _ in drawn])))
        things += [drawing.thing for _, drawing, _ in drawn]
    return Examples(torch.cat(pictures), [t.noun for t in things], [t.colour for t in things])


def read(archives: Path) -> list[nouns.Subject]:
    """All icons of the builder's sets and of these, with what they show."""
    packages = {**sources.SETS, **SETS}
    try:
        paths = {name: sources.fetch(package, archives) for name, package in packages.items()}
        return nouns.read_subjects(paths, sources.fetch(sources.EMOJIBASE, archives))
    except sources.BuildError as error:
        raise ArgumentError(f"--archives {archives}: {error}") from None


def held_out(data: CaptionedImages) -> set[tuple[str, str]]:
    """(set, name) of the icons out of training."""
    rows = (data.rows[i] for i in data.held_out.tolist())
    return {(row["set"], row["icon"]) for row in rows}


def apart(subjects: list[nouns.Subject], out: set[tuple[str, str]]) -> list[nouns.Subject]:
    """Those of SETS, without earlier drawings of the icons in `out`, which may be much alike."""
    marks = {
        (s.icon.set, mark)
        for s in subjects
        if (s.icon.set, s.icon.name) in out
        for mark in (s.icon.name, s.icon.hexcode)
        if mark
    }
    found = []
    for subject in subjects:
        icon = subject.icon
        later = LATER.get(icon.set)
        if icon.set in SETS and not {(later, icon.name), (later, icon.hexcode)} & marks:
            found.append(subject)
    return found
