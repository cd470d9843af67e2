"""Every noun that the classifier knows, asked for twice: which are drawn, and real icons."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation.coverage import halves
from tools.builtin_model.evaluation.judge import Judged
from tools.builtin_model.evaluation.prompts import Prompt, PromptThing

KIND = "names"
WORST = 40


def held_out(data: CaptionedImages, known: set[str]) -> tuple[list[Prompt], list[np.ndarray]]:
    """Every held-out icon of a known noun, as it is, and a prompt for it."""
    return _asked(data, [i for i in data.held_out.tolist() if data.rows[i]["noun"] in known])


def learnt(data: CaptionedImages, known: set[str]) -> tuple[list[Prompt], list[np.ndarray]]:
    """Plain icons of training, at most two of a known noun: the judge learnt from these."""
    return _asked(data, halves(data, known)[0])


def _asked(data: CaptionedImages, rows: list[int]) -> tuple[list[Prompt], list[np.ndarray]]:
    nouns = [data.rows[i]["noun"] for i in rows]
    pictures = [np.asarray(data.images[i]) for i in rows]
    return [Prompt(f"a {noun}", KIND, (PromptThing(noun),)) for noun in nouns], pictures


def recognised(judged: Sequence[Judged], nouns: set[str]) -> list[bool]:
    """Verdicts of the pictures of the kind that ask for one of `nouns`."""
    asked = (item for item in judged if item.prompt.kind == KIND)
    return [item.recognised for item in asked if item.prompt.noun in nouns]


def by_name(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """For each noun of the kind: pictures, how many are recognised, within five, and what is seen.

    The least recognised come first.
    """
    groups: dict[str, list[Judged]] = defaultdict(list)
    for item in judged:
        if item.prompt.kind == KIND:
            groups[item.prompt.noun].append(item)
    found = {
        noun: {
            "pictures": len(items),
            "recognised": sum(item.recognised for item in items),
            "within_five": sum(noun in item.whole.opinion.nouns for item in items),
            "seen": [item.whole.noun for item in items],
        }
        for noun, items in groups.items()
    }
    return dict(sorted(found.items(), key=lambda row: (_known(row[1]), row[0])))


def _known(row: dict[str, Any]) -> tuple[float, float]:
    return row["recognised"] / row["pictures"], row["within_five"] / row["pictures"]


def lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines for `report.md`: how many names are recognised in all, some and none; the worst."""
    if not found:
        return []
    counts = Counter(
        "all" if row["recognised"] == row["pictures"] else "some" if row["recognised"] else "none"
        for row in found.values()
    )
    worst = list(found.items())[:WORST]
    shown = [
        f"- {noun}: {row['recognised']} of {row['pictures']} (within five guesses "
        f"{row['within_five']}); seen: {', '.join(row['seen'])}"
        for noun, row in worst
    ]
    return [
        f"**Of {len(found)} names, {counts['all']} are recognised in each of their pictures, "
        f"{counts['some']} in one, {counts['none']} in none.** The {len(worst)} worst:",
        "",
        *shown,
    ]
