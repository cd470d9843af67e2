"""Verdicts on pictures: what is in them, and whether that was asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tools.builtin_model.evaluation.classifier import Classifier, Opinion
from tools.builtin_model.evaluation.colours import background_colour, object_colour
from tools.builtin_model.evaluation.prompts import Prompt, PromptThing
from tools.builtin_model.evaluation.styles import StyleJudge
from tools.builtin_model.evaluation.things import cut_out, find_things, together

SMALL = 0.6  # the longer side, in shares of the picture's, from which on a thing is big
ASIDE = 0.42  # a thing is on the left if its middle is: shares of the side


@dataclass(frozen=True)
class Seen:
    """What the judges see in a picture, or in a part of it."""

    opinion: Opinion
    measured: str | None  # colour by the pixels

    @property
    def noun(self) -> str:
        """The likeliest of all."""
        return self.opinion.nouns[0]

    @property
    def colour(self) -> str:
        """The colour by the pixels; where they lie between two words, the classifier decides."""
        return self.measured or self.opinion.colour


@dataclass(frozen=True)
class Judged:
    """One picture: what was asked for, and what is there."""

    prompt: Prompt
    whole: Seen  # all of the foreground
    things: tuple[Seen, ...] = ()  # each thing by itself, largest first
    background: str | None = None  # the colour's word
    centre: tuple[float, float] = (0.5, 0.5)  # of the foreground's box, x and y in [0, 1]
    length: float = 1.0  # of its longer side, in shares of the picture's
    style: str | None = None  # a word of STYLES, where one was asked for

    @property
    def recognised(self) -> bool:
        """The likeliest of all nouns is the one asked for."""
        return self.whole.noun == self.prompt.noun

    @property
    def coloured(self) -> bool:
        """The colour is the one asked for."""
        return self.whole.colour == self.prompt.colour

    @property
    def counted(self) -> bool:
        """There are as many things as asked for."""
        return len(self.things) == self.prompt.count

    @property
    def all_recognised(self) -> bool:
        """As many as asked for, and each is recognised."""
        return self.counted and all(seen.noun == self.prompt.noun for seen in self.things)

    @property
    def both(self) -> bool:
        """Each of the two things asked for is recognised among those found."""
        return {thing.noun for thing in self.prompt.things} <= {seen.noun for seen in self.things}

    @property
    def both_of_forty(self) -> bool:
        """Each is there by the narrower choice, among the forty objects."""
        found = {seen.opinion.among for seen in self.things}
        return {thing.noun for thing in self.prompt.things} <= found

    @property
    def both_coloured(self) -> bool:
        """Each of the two is there in the colour asked for."""
        found = {PromptThing(seen.noun, seen.colour) for seen in self.things}
        return set(self.prompt.things) <= found

    @property
    def on_background(self) -> bool:
        """The background has the colour asked for."""
        return self.background == self.prompt.background

    @property
    def in_place(self) -> bool:
        """The middle of the foreground is where it was asked to be."""
        x, y = self.centre
        at = {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}
        return self.prompt.place in at and at[self.prompt.place] < ASIDE

    @property
    def sized(self) -> bool:
        """It is as small or as big as asked for."""
        return self.prompt.size == ("small" if self.length < SMALL else "big")

    @property
    def styled(self) -> bool:
        """It is in the style of the set asked for."""
        return self.style == self.prompt.style

    @property
    def right(self) -> bool:
        """What this kind of prompt is there for is as asked."""
        return {
            "single": self.recognised,
            "synonym": self.recognised,
            "colour": self.recognised and self.coloured,
            "new colour": self.recognised and self.coloured,
            "two": self.both,
            "count": self.counted,
            "background": self.on_background,
            "place": self.in_place,
            "size": self.sized,
            "style": self.styled,
            "names": self.recognised,
        }[self.prompt.kind]

    @property
    def description(self) -> str:
        """What is seen, in words."""
        if self.prompt.kind in ("two", "count"):
            return ", ".join(f"{seen.colour} {seen.noun}" for seen in self.things) or "nothing"
        return {
            "background": f"on {self.background}",
            "place": "at {:.0%}, {:.0%}".format(*self.centre),
            "size": f"{self.length:.0%} long",
            "style": f"{self.whole.noun}, {self.style}",
        }.get(self.prompt.kind, f"{self.whole.colour} {self.whole.noun}")


def judge(
    classifier: Classifier,
    prompts: Sequence[Prompt],
    pictures: Sequence[np.ndarray | Image.Image],
    among: list[str],
    blue_aside: frozenset[str],
    style_judge: StyleJudge | None = None,
) -> list[Judged]:
    """Judge each picture.

    `among` are the nouns of the narrower choice, `blue_aside` those whose blue parts may be
    windows; `style_judge` is needed where prompts ask for a style.
    """
    arrays = [np.asarray(picture) for picture in pictures]
    styled = [array for prompt, array in zip(prompts, arrays, strict=True) if prompt.style]
    words: Iterator[str] = iter(())
    if styled:
        assert style_judge is not None  # see above
        words = iter(style_judge.seen(np.stack(styled)))
    found = [find_things(array) for array in arrays]
    crops, aside = [], []
    for prompt, array, things in zip(prompts, arrays, found, strict=True):
        all_of_it = together(things)
        crops.append(cut_out(array, all_of_it, []) if all_of_it else array)
        for thing in things:
            others = [other for other in things if other is not thing]
            crops.append(cut_out(array, thing, others))
        # As the data builder does: where blue is asked for, it is the thing's own.
        windows = prompt.noun in blue_aside and prompt.colour != "blue"
        aside += [windows] * (1 + len(things))
    opinions = classifier.opinions(np.stack(crops), among)
    seen = iter(
        Seen(opinion, object_colour(crop, windows))
        for opinion, crop, windows in zip(opinions, crops, aside, strict=True)
    )
    result = []
    for prompt, array, things in zip(prompts, arrays, found, strict=True):
        all_of_it, whole = together(things), next(seen)
        box = {"centre": all_of_it.centre, "length": all_of_it.length} if all_of_it else {}
        parts = tuple(next(seen) for _ in things)
        style = next(words) if prompt.style else None
        background = background_colour(array)
        result.append(Judged(prompt, whole, parts, background, style=style, **box))
    return result
