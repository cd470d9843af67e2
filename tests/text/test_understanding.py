"""What the built-in text encoder takes for the same: it knows more words than its captions have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.folder import load_component
from ldm.clip import CLIPTextEncoder
from ldm.text.tokenizer import CLIPTokenizer

Alike = Callable[[list[str], list[str]], Tensor]

# A thing, and other words for it.
WORDS = {
    "car": ("cars", "the car", "automobile", "sedan", "vehicle"),
    "dog": ("dogs", "puppy", "hound"),
    "cat": ("cats", "kitten"),
    "house": ("home", "cottage"),
    "tree": ("trees", "oak"),
    "boat": ("sailboat", "ship"),
    "bird": ("birds", "sparrow"),
}


@pytest.fixture(scope="module")
def alike() -> Alike:
    """Cosines (N, M) of the sentence states of texts."""
    tokenizer = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
    encoder = load_component(CLIPTextEncoder, asset_path("weights") / "text_encoder", torch.float32)

    def states(texts: list[str]) -> Tensor:
        with torch.no_grad():
            return F.normalize(encoder(torch.tensor(tokenizer(texts))).pooled, dim=-1)

    return lambda texts, others: states(texts) @ states(others).mT


def test_other_words_lie_by_the_thing_they_name(alike: Alike) -> None:
    words = [(thing, word) for thing, known in WORDS.items() for word in known]
    nearest = alike([word for _, word in words], list(WORDS)).argmax(1)
    assert [list(WORDS)[i] for i in nearest.tolist()] == [thing for thing, _ in words]


@pytest.mark.parametrize(
    ("asked", "same", "other"),
    [
        (
            "a red car",
            ["RED CAR", "red car", "car, red", "a car that is red", "the red cars"],
            ["a blue car", "a red bus", "a car and a red house"],
        ),
        (
            "a cat next to a house",
            ["a house next to a cat", "Cat beside house", "a cat and a house"],
            ["a dog next to a house", "a cat next to a tree", "a house"],
        ),
    ],
)
def test_case_articles_number_and_order_matter_less_than_what_is_said(
    alike: Alike, asked: str, same: list[str], other: list[str]
) -> None:
    assert alike([asked], same).min() > alike([asked], other).max() + 0.1
