"""Captions that are shuffled, shortened and begun as sd-scripts does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ldm.errors import ArgumentError
from ldm.training.data import step_generator
from ldm.training.data.caption_changes import CaptionChanges, warn_without_word
from tests.helpers.toy_latents import build

CAPTION = "sks, dog, red ,on grass,  one, two, three"
TAGS = ["sks", "dog", "red", "on grass", "one", "two", "three"]


def generators(count: int) -> list[torch.Generator]:
    return [step_generator(0, step) for step in range(count)]


def test_shuffled_tags_are_the_same_tags() -> None:
    changes = CaptionChanges(shuffle_caption=True, keep_tokens=2)
    drawn = [changes.draw(CAPTION, generator).split(", ") for generator in generators(50)]
    assert all(sorted(tags) == sorted(TAGS) and tags[:2] == ["sks", "dog"] for tags in drawn)
    assert len({tuple(tags) for tags in drawn}) > 30
    assert {tags[2] for tags in drawn} == set(TAGS[2:])  # each place is open to each
    again = [changes.draw(CAPTION, generator).split(", ") for generator in generators(50)]
    assert again == drawn
    few = CaptionChanges(shuffle_caption=True, keep_tokens=9)
    assert few.draw("a, b", step_generator(0, 0)) == "a, b"


@pytest.mark.parametrize(
    ("caption", "first", "last"),
    [
        ("sks, dog ||| red, blue", ["sks", "dog"], []),
        ("sks ||| red, blue ||| by me, good", ["sks"], ["by me", "good"]),
    ],
)
def test_what_stands_beside_separators_stays(
    caption: str, first: list[str], last: list[str]
) -> None:
    changes = CaptionChanges(shuffle_caption=True, keep_tokens=5, keep_tokens_separator="|||")
    seen = set()
    for generator in generators(20):
        tags = changes.draw(changes.begin(caption), generator).split(", ")
        assert tags[: len(first)] == first and tags[len(tags) - len(last) :] == last
        seen.add(tuple(tags[len(first) : len(tags) - len(last)]))
    assert seen == {("red", "blue"), ("blue", "red")}
    stays = CaptionChanges(keep_tokens_separator="|||")
    assert "|" not in stays.begin(caption)


def test_tags_are_dropped_at_their_rate() -> None:
    changes = CaptionChanges(caption_tag_dropout_rate=0.25, keep_tokens=1)
    drawn = [changes.draw(CAPTION, generator).split(", ") for generator in generators(400)]
    assert all(tags[0] == "sks" for tags in drawn)
    assert all(tags == [tag for tag in TAGS if tag in tags] for tags in drawn)  # in their order
    assert 4.3 < sum(len(tags) - 1 for tags in drawn) / 400 < 4.7  # 0.75 · 6
    none = CaptionChanges(caption_tag_dropout_rate=1.0)
    assert none.draw(CAPTION, step_generator(0, 0)) == ""


def test_prefix_and_suffix() -> None:
    changes = CaptionChanges(caption_prefix="sks style,", caption_suffix=", by me")
    assert changes.begin("a dog") == "sks style, a dog , by me"
    assert changes.begin("") == "sks style, , by me"
    shuffled = CaptionChanges(caption_prefix="sks style,", shuffle_caption=True, keep_tokens=1)
    text = shuffled.draw(shuffled.begin("a, b, c"), step_generator(0, 0))
    assert text.startswith("sks style, ") and sorted(text[11:].split(", ")) == ["a", "b", "c"]


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    folder = tmp_path / "tagged"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (80 * i, 0, 99)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"sks, red {i}, blue, small, old, round")
    return folder


def test_batches_depend_on_the_step_alone(parts: Path, tagged: Path, tmp_path: Path) -> None:
    """A resumed run, which begins in the middle, learns the same captions."""
    options: dict[str, Any] = {"shuffle_caption": True, "caption_tag_dropout_rate": 0.2}
    options |= {"keep_tokens": 1, "data": {"size": 32}}
    runs = []
    for order in ([0, 1, 2, 3], [3, 2]):
        recipe = build(parts, tagged, tmp_path / "run", **options)
        recipe.prepare(Accelerator(cpu=True))
        runs.append({step: recipe.batch(step, step_generator(7, step)) for step in order})
    for step in (2, 3):
        assert all(torch.equal(value, runs[1][step][key]) for key, value in runs[0][step].items())
    assert not torch.equal(runs[0][0]["ids"], runs[0][1]["ids"])
    plain = build(parts, tagged, tmp_path / "plain", data={"size": 32})
    plain.prepare(Accelerator(cpu=True))
    batch = plain.batch(3, step_generator(7, 3))
    # What is drawn for captions comes last: pictures and noise are those of a run without.
    assert all(torch.equal(batch[key], runs[0][3][key]) for key in ("x0", "noise", "t", "dropped"))


def test_changing_captions_have_no_kept_states(parts: Path, tagged: Path, tmp_path: Path) -> None:
    for options in ({"shuffle_caption": True}, {"caption_tag_dropout_rate": 0.1}):
        with pytest.raises(ArgumentError, match=f"options.{next(iter(options))} changes them"):
            build(parts, tagged, tmp_path, keep_contexts=True, data={"size": 32}, **options)
    recipe = build(
        parts, tagged, tmp_path, keep_contexts=True, caption_prefix="big", data={"size": 32}
    )
    recipe.prepare(Accelerator(cpu=True))
    expected = {f"big sks, red {i}, blue, small, old, round" for i in range(3)}
    assert set(recipe.number) == expected | {""}


def test_captions_without_the_word_are_counted() -> None:
    captions = ["a photo of SKS dog", "a dog in asks", "sks"]
    with pytest.warns(UserWarning, match="1 of 3 captions lack the word 'sks' .*a dog in asks"):
        assert warn_without_word(captions, "sks") == 1
    with pytest.warns(UserWarning, match="1 of 1 captions"):
        warn_without_word(["a dog"], "<sks>")
    assert warn_without_word(["my <sks> dog"], "<sks>") == 0
