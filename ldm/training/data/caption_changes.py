"""Captions as tags that are shuffled and left out, by the rules of sd-scripts (kohya).

Source: kohya-ss/sd-scripts, ``BaseDataset.process_caption`` in library/train_util.py.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ldm.config.settings import within


@dataclass(kw_only=True)
class CaptionChanges:
    """How captions are changed before they are learnt: once, or for each batch.

    A caption's tags are what stands between its commas.
    """

    # Put before and after every caption, with a space between.
    caption_prefix: str = ""
    caption_suffix: str = ""
    shuffle_caption: bool = False  # whether the tags come in another order in each batch
    keep_tokens: int = within("[0, inf)", 0)  # of the tags, how many first ones stay in place
    # Where a caption has it, what stands before it stays in place instead, as does what stands
    # behind a second one.
    keep_tokens_separator: str = ""
    caption_tag_dropout_rate: float = within("[0, 1]", 0.0)  # share of the other tags left out

    @property
    def change(self) -> bool:
        """Whether captions differ from batch to batch."""
        return self.shuffle_caption or self.caption_tag_dropout_rate > 0

    def begin(self, caption: str) -> str:
        """Return a caption with its prefix and its suffix; without separators, if it stays so."""
        whole = " ".join(filter(None, (self.caption_prefix, caption, self.caption_suffix)))
        if self.change or not self.keep_tokens_separator or self.keep_tokens_separator not in whole:
            return whole
        return ", ".join(tag for part in self._parts(whole) for tag in part)

    def draw(self, caption: str, generator: torch.Generator) -> str:
        """Return a caption of ``begin`` as a batch has it."""
        if not self.change:
            return caption
        first, tags, last = self._parts(caption)
        if self.shuffle_caption:
            tags = [tags[i] for i in torch.randperm(len(tags), generator=generator)]
        if self.caption_tag_dropout_rate > 0:
            stays = torch.rand(len(tags), generator=generator) >= self.caption_tag_dropout_rate
            tags = [tag for tag, stay in zip(tags, stays.tolist(), strict=True) if stay]
        return ", ".join([*first, *tags, *last])

    def _parts(self, caption: str) -> tuple[list[str], list[str], list[str]]:
        """Return the tags that stay in front, those that change, and those that stay behind."""
        if self.keep_tokens_separator and self.keep_tokens_separator in caption:
            first, *others = caption.split(self.keep_tokens_separator, 2)
            parts = [[tag for tag in tags_of(text) if tag] for text in (first, *others)]
            return parts[0], parts[1], parts[2] if len(parts) > 2 else []
        tags = tags_of(caption.strip())
        return tags[: self.keep_tokens], tags[self.keep_tokens :], []


def tags_of(text: str) -> list[str]:
    """Return what stands between commas."""
    return [tag.strip() for tag in text.split(",")]


def warn_without_word(captions: Sequence[str], word: str) -> int:
    """Warn of captions that lack the word that is to be learnt; returns their number.

    A word is found in either case, but not inside of another word.
    """
    found = re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE)
    without = [text for text in captions if not found.search(text)]
    if without:
        warnings.warn(
            f"{len(without)} of {len(captions)} captions lack the word {word!r} (such as "
            f"{without[0][:60]!r}); what these pictures show is not learnt under that word: write "
            "it into the captions",
            stacklevel=2,
        )
    return len(without)
