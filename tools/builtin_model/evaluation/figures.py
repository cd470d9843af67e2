"""Shares over many verdicts."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

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
}


def share(items: Iterable[Judged], test: Verdict) -> float | None:
    """Share of items that pass, in [0, 1]; None of nothing."""
    verdicts = [test(item) for item in items]
    return sum(verdicts) / len(verdicts) if verdicts else None


def shares(judged: Sequence[Judged]) -> dict[str, float | None]:
    """SHARES, each over the pictures of its kinds; and of some of them."""
    result = {
        name: share([j for j in judged if j.prompt.kind in kinds], test)
        for name, (kinds, test) in SHARES.items()
    }
    pairs = [j for j in judged if j.prompt.kind == "two" and j.prompt.colour]
    result["both_coloured"] = share(pairs, lambda j: j.both_coloured)
    for count in (1, 2, 3, 4):
        items = [j for j in judged if j.prompt.kind == "count" and j.prompt.count == count]
        result[f"count_{count}"] = share(items, lambda j: j.counted)
    for style in STYLES.values():
        items = [j for j in judged if j.prompt.style == style]
        result[f"style_{style}"] = share(items, lambda j: j.styled)
    return result


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
