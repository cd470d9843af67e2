"""Shares over many verdicts."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tools.builtin_model.evaluation.intervals import of_verdicts, wilson
from tools.builtin_model.evaluation.judge import Judged
from tools.builtin_model.icons.captions import STYLES

Verdict = Callable[[Judged], bool]
COLOURED = ("colour", "new colour")
NAMED = ("single", *COLOURED)  # prompts of one thing that fills the picture

# Name in `report.json` → the kinds of prompts, and what is to be true of their pictures.
SHARES: dict[str, tuple[tuple[str, ...], Verdict]] = {
    "object": (("single",), lambda j: j.recognised),
    "object_top5": (("single",), lambda j: j.prompt.noun in j.whole.opinion.nouns),
    "colour": (COLOURED, lambda j: j.coloured),
    "colour_by_pixels": (COLOURED, lambda j: j.whole.measured == j.prompt.colour),
    "colour_by_classifier": (COLOURED, lambda j: j.whole.opinion.colour == j.prompt.colour),
    "object_and_colour": (("colour",), lambda j: j.right),
    "new_object_and_colour": (("new colour",), lambda j: j.right),
    "both": (("two",), lambda j: j.both),
    "both_of_forty": (("two",), lambda j: j.both_of_forty),
    "count": (("count",), lambda j: j.counted),
    "count_and_object": (("count",), lambda j: j.all_recognised),
    "synonym": (("synonym",), lambda j: j.recognised),
    "background": (("background",), lambda j: j.on_background),
    "place": (("place",), lambda j: j.in_place),
    "size": (("size",), lambda j: j.sized),
    "style": (("style",), lambda j: j.styled),
    "names": (("names",), lambda j: j.recognised),
    "names_top5": (("names",), lambda j: j.prompt.noun in j.whole.opinion.nouns),
}


def share(items: Iterable[Judged], test: Verdict) -> float | None:
    """Share of items that pass, in [0, 1]; None of nothing."""
    verdicts = [test(item) for item in items]
    return sum(verdicts) / len(verdicts) if verdicts else None


def verdicts(judged: Sequence[Judged]) -> dict[str, list[bool]]:
    """SHARES, each as the verdicts on the pictures of its kinds; and those of some of them."""
    result = {
        name: [test(j) for j in judged if j.prompt.kind in kinds]
        for name, (kinds, test) in SHARES.items()
    }
    pairs = [j for j in judged if j.prompt.kind == "two" and j.prompt.colour]
    result["both_coloured"] = [j.both_coloured for j in pairs]
    for count in (1, 2, 3, 4):
        items = [j for j in judged if j.prompt.kind == "count" and j.prompt.count == count]
        result[f"count_{count}"] = [j.counted for j in items]
    for style in STYLES.values():
        result[f"style_{style}"] = [j.styled for j in judged if j.prompt.style == style]
    return result


def shares(judged: Sequence[Judged]) -> dict[str, float | None]:
    """Shares of the verdicts that are true, by name; None without any."""
    found = verdicts(judged)
    return {name: sum(each) / len(each) if each else None for name, each in found.items()}


def with_intervals(found: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Shares of verdicts by name and, by `NAME_interval`, their 95 % intervals.

    `style_worst` is the least of the styles' shares.
    """
    result: dict[str, Any] = {}
    for name, each in found.items():
        result[name] = sum(each) / len(each) if each else None
        result[f"{name}_interval"] = of_verdicts(each)
    styles = [f"style_{style}" for style in STYLES.values()]
    asked = [name for name in styles if result.get(name) is not None]
    worst = min(asked, key=lambda name: result[name], default=None)
    for end in ("", "_interval"):
        result[f"style_worst{end}"] = result[f"{worst}{end}"] if worst else None
    return result


def of_counts(name: str, counts: tuple[int, int]) -> dict[str, Any]:
    """Do as ``with_intervals`` for one figure, from its hits and their number."""
    hits, of = counts
    return {name: hits / of if of else None, f"{name}_interval": wilson(hits, of)}


def named(item: Judged) -> bool:
    """Whether what it asks for is recognised, whatever its colour, number or place."""
    return item.both if item.prompt.kind == "two" else item.recognised


def by_kind(judged: Sequence[Judged]) -> dict[str, dict[str, float | int | None]]:
    """For each kind of prompt: pictures, the share that is right, and of recognised objects."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for item in judged:
        groups[item.prompt.kind].append(item)
    return {
        kind: {
            "pictures": len(items),
            "right": share(items, lambda j: j.right),
            "recognised": share(items, named),
        }
        for kind, items in groups.items()
    }


def by_object(judged: Sequence[Judged]) -> dict[str, dict[str, int | bool]]:
    """For each noun, of the pictures of one thing: how many are recognised; more than half?"""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for item in judged:
        if item.prompt.kind in NAMED:
            groups[item.prompt.noun].append(item)
    result = {}
    for noun, items in sorted(groups.items()):
        hits = sum(item.recognised for item in items)
        result[noun] = {
            "pictures": len(items),
            "recognised": hits,
            "majority": 2 * hits > len(items),
        }
    return result
