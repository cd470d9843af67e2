"""Verdicts on pictures, and the figures that follow from them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from evaluation.classifier import Classifier, Opinion
from evaluation.colours import object_colour
from evaluation.prompts import Prompt


@dataclass(frozen=True)
class Judged:
    """One picture: what was asked for, and what the judges see."""

    prompt: Prompt
    opinion: Opinion
    measured: str | None  # colour by the pixels

    @property
    def recognised(self) -> bool:
        """The likeliest of all nouns is the one asked for."""
        return self.opinion.nouns[0] == self.prompt.noun

    @property
    def colour(self) -> str:
        """The colour by the pixels; where they lie between two words, the classifier decides."""
        return self.measured or self.opinion.colour

    @property
    def right(self) -> bool:
        """Recognised, and of the colour asked for, if any."""
        return self.recognised and self.prompt.colour in (None, self.colour)


def judge(
    classifier: Classifier,
    prompts: Sequence[Prompt],
    pictures: Sequence[Image.Image],
    among: list[str],
    blue_aside: frozenset[str],
) -> list[Judged]:
    """A verdict for each picture. `blue_aside`: nouns whose blue parts may be windows."""
    arrays = [np.asarray(picture) for picture in pictures]
    opinions = classifier.opinions(np.stack(arrays), among)
    result = []
    for prompt, opinion, array in zip(prompts, opinions, arrays, strict=True):
        # As the data builder does: where blue is asked for, it is the thing's own.
        aside = prompt.noun in blue_aside and prompt.colour != "blue"
        result.append(Judged(prompt, opinion, object_colour(array, aside)))
    return result


def share(items: Iterable[Judged], test: Callable[[Judged], bool]) -> float | None:
    """Share of items that pass, in [0, 1]; None of nothing."""
    verdicts = [test(item) for item in items]
    return sum(verdicts) / len(verdicts) if verdicts else None


def summary(judged: Sequence[Judged]) -> dict[str, float | int | None]:
    """Shares over all pictures; those of colours over the pictures whose prompt names one."""
    coloured = [j for j in judged if j.prompt.colour]
    return {
        "pictures": len(judged),
        "object_top1": share(judged, lambda j: j.recognised),
        "object_top5": share(judged, lambda j: j.prompt.noun in j.opinion.nouns),
        "object_top1_of_forty": share(judged, lambda j: j.opinion.among == j.prompt.noun),
        "coloured_pictures": len(coloured),
        "colour": share(coloured, lambda j: j.colour == j.prompt.colour),
        "colour_by_pixels": share(coloured, lambda j: j.measured == j.prompt.colour),
        "colour_by_classifier": share(coloured, lambda j: j.opinion.colour == j.prompt.colour),
        "object_and_colour": share(coloured, lambda j: j.right),
    }


def by_object(judged: Sequence[Judged]) -> dict[str, dict[str, int | bool]]:
    """For each noun: pictures, how many are recognised, and whether that is more than half."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for item in judged:
        groups[item.prompt.noun].append(item)
    result = {}
    for noun, items in groups.items():
        hits = sum(item.recognised for item in items)
        of_forty = sum(item.opinion.among == noun for item in items)
        result[noun] = {
            "pictures": len(items),
            "recognised": hits,
            "recognised_of_forty": of_forty,
            "majority": 2 * hits > len(items),
        }
    return result
