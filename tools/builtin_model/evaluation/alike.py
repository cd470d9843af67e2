"""How near drawn pictures come to real icons as a whole: distances, coverage, near-copies."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation import copies, coverage, examples, figures, names, prompts
from tools.builtin_model.evaluation.classifier import Classifier
from tools.builtin_model.evaluation.coverage import Coverage
from tools.builtin_model.evaluation.frechet import DIRECTIONS, distance, principal
from tools.builtin_model.evaluation.intervals import bootstrap
from tools.builtin_model.evaluation.judge import Judged

SAMPLE = 1000  # icons that say which directions of the features matter, see ``distances``
Figures = dict[str, Any]  # figures by their names in report.BARS, and their intervals


def measured(
    classifier: Classifier,
    data: CaptionedImages,
    drawn: tuple[Sequence[Judged], Sequence[Any]],
    real_ones: tuple[Sequence[Judged], Sequence[Any]],
) -> tuple[Figures, Figures]:
    """Return the figures of BARS with their intervals, of drawn pictures and of real ones.

    Those of eyes and of icons that the judge learnt from are not among them.
    """
    found = {item.prompt.noun for item in real_ones[0] if item.prompt.kind == names.KIND}
    both = []
    near = near_copies(data, drawn, real_ones)
    for (judged, _), copied in zip((drawn, real_ones), near, strict=True):
        verdicts = figures.verdicts(judged)
        verdicts["names_held_out"] = names.recognised(judged, found)
        verdicts["near_copies"] = copied
        both.append(figures.with_intervals(verdicts))
    for pair in (
        distances(classifier, data, *drawn),
        covered(classifier, data, *drawn),
    ):
        for of_all, more in zip(both, pair, strict=True):
            of_all |= more
    return both[0], both[1]


def accuracy(classifier: Classifier, data: CaptionedImages) -> dict[str, Any]:
    """How often the classifier names the held-out icons, as they are, of all nouns it knows."""
    indices = known_rows(classifier, data)
    nouns = [data.rows[i]["noun"] for i in indices]
    opinions = classifier.opinions(np.asarray(data.images[indices]), prompts.FORTY)
    pairs = list(zip(opinions, nouns, strict=True))
    return {
        "classes": len(classifier.labels.nouns),
        "held_out": len(pairs),
        "top1": sum(o.nouns[0] == noun for o, noun in pairs) / len(pairs),
        "top5": sum(noun in o.nouns for o, noun in pairs) / len(pairs),
    }


def known_rows(classifier: Classifier, data: CaptionedImages) -> list[int]:
    """Rows of the held-out icons whose noun the classifier knows."""
    known = set(classifier.labels.nouns)
    return [i for i in data.held_out.tolist() if data.rows[i]["noun"] in known]


def distances(
    classifier: Classifier, data: CaptionedImages, judged: Sequence[Judged], pictures: Sequence[Any]
) -> tuple[Figures, Figures]:
    """Fréchet distances of single objects, drawn and of training, to the held-out icons.

    In the DIRECTIONS in which training's plain icons differ most: 61 % of their variance. In all of
    the features, two samples as small as these are far apart whatever they show (6.2 for real
    icons, where these directions have 0.6). Of training, as many pictures of the same nouns, each
    the first that is plain.
    """
    held_out = known_rows(classifier, data)
    kinds = (item.prompt.kind for item in judged)
    single = [np.asarray(p) for kind, p in zip(kinds, pictures, strict=True) if kind == "single"]
    if min(len(held_out), len(single)) < 2:
        return {"frechet": None}, {"frechet": None}
    rows = [(i, data.rows[i]) for i in examples.single_rows(data)]
    plain = [(i, row["noun"]) for i, row in rows if not row["colour"] and not row["background"]]
    wanted = {data.rows[i]["noun"] for i in held_out}
    first = {noun: i for i, noun in reversed(plain) if noun in wanted}

    def features(rows: Iterable[int]) -> np.ndarray:
        return classifier.features(np.asarray(data.images[sorted(rows)]))

    some = [i for i, _ in plain[:: max(1, len(plain) // SAMPLE)]]
    directions = principal(features(some), DIRECTIONS)
    target = features(held_out) @ directions

    def measure(sample: np.ndarray) -> Figures:
        def of_some(ours: np.ndarray, theirs: np.ndarray) -> float:
            return distance(sample[ours], target[theirs])

        interval = bootstrap(of_some, (len(sample), len(target)))
        return {"frechet": distance(sample, target), "frechet_interval": interval}

    drawn = classifier.features(np.stack(single)) @ directions
    return measure(drawn), measure(features(first.values()) @ directions)


def covered(
    classifier: Classifier, data: CaptionedImages, judged: Sequence[Judged], pictures: Sequence[Any]
) -> tuple[Figures, Figures]:
    """Precision and recall, against real icons, of the pictures of `names`; of other real icons.

    All three sets have as many pictures, of the same nouns.
    """
    drawn: dict[str, list[np.ndarray]] = {}
    for item, picture in zip(judged, pictures, strict=True):
        if item.prompt.kind == names.KIND:
            drawn.setdefault(item.prompt.noun, []).append(np.asarray(picture))
    twice = {noun for noun, found in drawn.items() if len(found) == coverage.PER_NOUN}
    first, second = coverage.halves(data, twice)
    if len(first) <= coverage.NEIGHBOURS:
        return dict.fromkeys(("precision", "recall")), dict.fromkeys(("precision", "recall"))
    ours = np.stack([drawn[data.rows[i]["noun"]].pop() for i in first])
    target = classifier.features(np.asarray(data.images[first]))
    others = classifier.features(np.asarray(data.images[second]))
    found = coverage.coverage(classifier.features(ours), target)
    return _figures(found), _figures(coverage.coverage(others, target))


def _figures(found: Coverage) -> Figures:
    return {
        "precision": found.precision,
        "precision_interval": found.precision_interval,
        "recall": found.recall,
        "recall_interval": found.recall_interval,
    }


def near_copies(
    data: CaptionedImages, *sets: tuple[Sequence[Judged], Sequence[Any]]
) -> list[list[bool]]:
    """Whether each picture of a colour or a composition is a near-copy of a training icon.

    A list for each of the sets of verdicts and pictures.
    """
    composed = [
        [np.asarray(p) for j, p in zip(judged, pictures, strict=True) if j.prompt.composed]
        for judged, pictures in sets
    ]
    if not any(composed):
        return [[] for _ in sets]
    plain = copies.plain_icons(data)
    near = [copies.nearest(some, plain) < copies.NEAR if some else np.empty(0) for some in composed]
    return [each.tolist() for each in near]
