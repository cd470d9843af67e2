"""Files beside a picture of ``ldm-generate``: its steps, an animation, its words' attention."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import ArgumentError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ldm.pipeline import Pipeline, Progress
    from ldm.techniques.attention_maps import AttentionMaps

MOST_STEPS = 10  # on a strip
SECONDS, LAST = 3.0, 1.5  # of an animation; how long the picture itself stays
FASTEST = 0.04  # seconds a frame
STEPS, ANIMATION, WORDS = "steps", "animation", "words"  # ends of the files' names


def beside(path: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Return the further files of a picture, by the ends of their names."""
    endings = {
        STEPS: ".png" if arguments.save_steps else None,
        ANIMATION: arguments.animation and f".{arguments.animation}",
        WORDS: ".png" if arguments.explain else None,
    }
    return {
        name: path.with_name(f"{path.stem}-{name}{ending}")
        for name, ending in endings.items()
        if ending
    }


def check_single_pictures(arguments: argparse.Namespace) -> None:
    """Raise ArgumentError if these files have no single picture to accompany."""
    for name in ("save_steps", "animation", "explain"):
        for sheet in ("grid", "x", "y"):
            if getattr(arguments, name) and getattr(arguments, sheet):
                raise ArgumentError(
                    f"--{name.replace('_', '-')} is about single pictures; leave --{sheet} out"
                )


def check_sizes(
    arguments: argparse.Namespace, width: int, height: int, steps: int, texts: Sequence[str]
) -> None:
    """Raise ArgumentError if a file would be too large, before anything is drawn."""
    if not (arguments.save_steps or arguments.animation or arguments.explain):
        return
    from ldm.images.sheets import MOST_PIXELS, check_sheet_size, sheet_size

    if arguments.save_steps:
        shown = len(chosen(steps))
        check_sheet_size(*sheet_size(shown, shown, width, height), "the strip of --save-steps")
    if arguments.animation and (steps + 1) * width * height > MOST_PIXELS:
        raise ArgumentError(
            f"the animation would have {steps + 1} frames of {width}x{height} = "
            f"{(steps + 1) * width * height:,} pixels; at most {MOST_PIXELS:,} work: ask for "
            "fewer steps or a smaller picture"
        )
    if arguments.explain:
        most = 1 + max(count_words(text, steps) for text in texts)
        columns = square(most)
        check_sheet_size(*sheet_size(most, columns, width, height), "the words of --explain")


def count_words(prompt: str, steps: int) -> int:
    """Estimate how many words ``--explain`` shows of a prompt: those of all its texts."""
    from ldm.text.editing import schedule
    from ldm.text.grammar import split

    texts = {text for part, _ in split(prompt) for _, text in schedule(part, max(steps, 1))}
    return sum(len(text.split()) for text in texts)


def chosen(steps: int) -> list[int]:
    """Choose the steps of 1…n that a strip shows: the first, the last, evenly between them."""
    shown = min(steps, MOST_STEPS)
    if shown < 2:
        return [steps]
    return [1 + round(i * (steps - 1) / (shown - 1)) for i in range(shown)]


def square(count: int) -> int:
    """Count the columns of a sheet that is about square."""
    return max(1, round(count**0.5 + 0.49))


def few_colours(picture: Image) -> Image:
    """Reduce a picture to the 256 colours that suit it best, dithered."""
    from PIL.Image import Dither, Quantize

    palette = picture.quantize(256, Quantize.MAXCOVERAGE, kmeans=4)
    return picture.quantize(palette=palette, dither=Dither.FLOYDSTEINBERG)


class Watch:
    """An observer of the steps of a batch, which makes the files beside its pictures."""

    def __init__(self, pipe: Pipeline, arguments: argparse.Namespace) -> None:
        self.pipe, self.arguments = pipe, arguments
        self.attention: AttentionMaps | None = None
        self.guesses: list[tuple[int, Tensor]] = []  # step, x̂₀ of the batch
        self.frames: list[Tensor] = []  # colours of the batch
        self.steps = 0

    def __call__(self, progress: Progress) -> None:
        """Record a step."""
        self.steps = progress.steps
        if self.arguments.save_steps and progress.step in chosen(progress.steps)[:-1]:
            self.guesses.append((progress.step, progress.x0))
        if self.arguments.animation and progress.step:
            self.frames.append(self.pipe.preview(progress.x0))

    def files(self, index: int, picture: Image) -> Iterator[tuple[str, Image, dict[str, Any]]]:
        """Yield (end of the name, picture, options of Pillow's encoder) for picture ``index``."""
        if self.arguments.save_steps:
            yield STEPS, self._strip(index, picture), {}
        if self.arguments.animation:
            yield ANIMATION, *self._animation(index, picture)
        if self.attention is not None:
            yield WORDS, self._words(index, picture), {}

    def _strip(self, index: int, picture: Image) -> Image:
        from ldm.images import to_pil
        from ldm.images.sheets import sheet

        shown = [to_pil(self.pipe.decode(x0[index : index + 1]))[0] for _, x0 in self.guesses]
        labels = [f"step {step}" for step, _ in self.guesses] + [f"step {self.steps}"]
        return sheet([*shown, picture], columns=len(labels), labels=labels)

    def _animation(self, index: int, picture: Image) -> tuple[Image, dict[str, Any]]:
        from ldm.images import stretch, to_pil

        frames = [
            stretch(to_pil(colours[index : index + 1] * 2 - 1)[0], picture.height, picture.width)
            for colours in self.frames
        ]
        each = max(FASTEST, SECONDS / max(len(frames), 1))
        durations = [int(1000 * each)] * len(frames) + [int(1000 * LAST)]
        frames.append(picture)
        if self.arguments.animation == "gif":
            frames = [few_colours(frame) for frame in frames]
        first, *rest = frames
        options = {"save_all": True, "append_images": rest, "duration": durations, "loop": 0}
        return first, options

    def _words(self, index: int, picture: Image) -> Image:
        from ldm.images.sheets import heat, sheet

        words = self.attention.words(picture=index) if self.attention and self.steps else []
        shown = [heat(picture, values.numpy()) for _, values in words]
        labels = ["the picture", *(word for word, _ in words)]
        return sheet([picture, *shown], square(len(labels)), labels)


@contextlib.contextmanager
def watching(pipe: Pipeline, arguments: argparse.Namespace) -> Iterator[Watch]:
    """Provide a ``Watch`` while pictures are drawn."""
    watch = Watch(pipe, arguments)
    with pipe.explain() if arguments.explain else contextlib.nullcontext() as attention:
        watch.attention = attention
        yield watch
