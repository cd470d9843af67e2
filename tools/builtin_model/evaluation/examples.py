"""What the classifier learns from: single icons of the data set's training split."""

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation import classifier
from tools.builtin_model.icons.nouns import read_everyday

MIN_ICONS = 2  # a noun with fewer in training cannot be learnt


@dataclass(frozen=True)
class Examples:
    """Pictures with the names of what they show."""

    pictures: Tensor  # uint8 (N, 3, SIZE, SIZE)
    nouns: list[str]
    colours: list[str | None]

    def __add__(self, other: "Examples") -> "Examples":
        pictures = torch.cat([self.pictures, other.pictures])
        return Examples(pictures, self.nouns + other.nouns, self.colours + other.colours)


def of_training(data: CaptionedImages, nouns: set[str], chunk: int = 512) -> Examples:
    """Return the single icons of `nouns` in the training split."""
    rows = [i for i in single_rows(data) if data.rows[i]["noun"] in nouns]
    parts = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
    return Examples(
        torch.cat([classifier.shrink(data.images[part]) for part in parts]),
        [data.rows[i]["noun"] for i in rows],
        [data.rows[i]["colour"] for i in rows],
    )


def kind(row: dict[str, Any]) -> str:
    """Name what a row shows: "one" icon that fills the picture, or "placed", "two" or "several"."""
    return row.get("kind", "one")


def on_white(row: dict[str, Any]) -> bool:
    """Whether the background is white, said or not."""
    return row["background"] in (None, "white")


def single_rows(data: CaptionedImages) -> list[int]:
    """Rows of the training split that show one icon, and know which thing it is."""
    rows = data.train.tolist()
    return [i for i in rows if kind(data.rows[i]) == "one" and data.rows[i]["noun"]]


def known_nouns(data: CaptionedImages) -> list[str]:
    """List the everyday things that enough icons of the training split show, sorted."""
    everyday = {noun.noun for noun in read_everyday()}
    icons = defaultdict(set)
    for row in (data.rows[i] for i in single_rows(data)):
        icons[row["noun"]].add((row["set"], row["icon"]))
    return sorted(n for n, names in icons.items() if n in everyday and len(names) >= MIN_ICONS)


def fingerprint(data: CaptionedImages) -> str:
    """Return a key that changes with the icons, what they show, and which are held out.

    Captions, scenes of several icons and the number of each icon's pictures may change.
    """
    keys = ("split", "set", "icon", "noun")
    icons = {tuple(row[key] for key in keys) for row in data.rows if kind(row) == "one"}
    return hashlib.sha256(json.dumps(sorted(icons, key=str)).encode()).hexdigest()[:16]


def other_icons(path: Path, data: CaptionedImages) -> ArgumentError:
    """Build the error for a network at `path` that other icons than those of `data` trained."""
    return ArgumentError(
        f"{path} is of other icons than {data.folder}; delete it, or choose another folder "
        "(--output, --judge)"
    )


def plain_rows(data: CaptionedImages) -> list[int]:
    """Training's pictures of one icon on white of which no colour is said: mostly its own."""
    rows = ((i, data.rows[i]) for i in data.train.tolist())
    return [i for i, row in rows if kind(row) == "one" and not row["colour"] and on_white(row)]
