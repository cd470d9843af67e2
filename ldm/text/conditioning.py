"""Prompts as what the U-Net is conditioned on, at every step of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.clip import CLIPTextEncoder
from ldm.errors import ArgumentError
from ldm.text.chunks import Chunk, cut
from ldm.text.editing import schedule
from ldm.text.grammar import split
from ldm.text.tokenizer import CLIPTokenizer

# Of 10: the inputs of SDXL's refiner for prompts and negative prompts, with diffusers' values.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
ROWS = 32  # chunks that a text encoder reads at once


@dataclass(frozen=True)
class TextModel:
    """A tokenizer and the text encoder that reads its ids."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextEncoder


@dataclass(frozen=True, eq=False)
class Conditioning:
    """The U-Net's inputs for one picture, named as ``UNet.forward`` names them."""

    context: Tensor | None = None  # (77 k, D), for cross-attention: k chunks
    pooled: Tensor | None = None  # (P,), SDXL: the text in one state
    time_ids: Tensor | None = None  # (5 or 6,), float32, SDXL: sizes in pixels
    class_labels: Tensor | None = None  # (), int64: which of the model's classes
    text: str = ""  # the source of all these; the U-Net does not read it

    @property
    def parts(self) -> dict[str, Tensor]:
        """The tensors that are not None, by name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}

    @property
    def length(self) -> int:
        """Length of the context; only contexts of one length fit into one U-Net call."""
        return 0 if self.context is None else len(self.context)


@dataclass(frozen=True)
class Script:
    """The conditioning of a U-Net in the course of a run."""

    lines: tuple[tuple[int, Conditioning], ...]  # (its last step, counted from 1; conditioning)
    weight: float = 1.0  # among the texts that AND joins

    def at(self, step: int) -> Conditioning:
        """Return the conditioning at a step, counted from 1; the last one stays."""
        lines = (one for last, one in self.lines if step <= last)
        return next(lines, self.lines[-1][1])


@dataclass(frozen=True)
class Prompted:
    """The conditioning of one picture and its negative; all contexts have one length."""

    scripts: tuple[Script, ...]  # several if AND joins texts
    negative: Script

    @property
    def combined(self) -> bool:
        """Whether there is more than one text, or another weight than 1."""
        return [script.weight for script in self.scripts] != [1]


def encode_prompts(
    models: Sequence[TextModel],
    prompts: Sequence[str],
    negatives: Sequence[str] | None,
    steps: int,
    clip_skip: int = 0,
    xl: bool = False,
    sizes: tuple[Tensor, Tensor] | None = None,
    steps_before: int = 0,
) -> list[Prompted]:
    """Encode prompts to the states of their tokens, in the encoders' dtype and on their device.

    Prompts are in the grammar of ``ldm.text.grammar``; in negative ones, AND is a word, as in
    A1111.
    A prompt's texts and its negative ones are padded with empty chunks to the same number, on which
    other prompts have no influence: each picture is the same as if drawn alone.

    The states of several models are concatenated along D. ``xl`` encodes as SDXL does (Podell et
    al. 2023, section 2.1): it takes the penultimate layer, without the final norm, and the pooled
    state of the last model's first chunk, without weights.

    Args:
        models: the text encoders; all read all prompts.
        negatives: one for each prompt; None stands for zeros.
        steps, steps_before: of the run and of the one before it, for ``[a:b:0.5]``.
        clip_skip: how many layers are left out, as diffusers counts: 0 takes the model's own
            layer, 1 the one before; A1111 calls these 1 and 2.
        sizes: ``time_ids`` (5 or 6,) of the prompts and of the negative ones.

    Raises ArgumentError for a prompt that is too long or nested too deep, and for a clip_skip of
    more layers than there are.
    """
    plans = plan_texts(prompts, negatives, steps, steps_before)
    encoder = PromptEncoder(models, clip_skip, xl)
    counts = [max(map(encoder.count, plan.texts + plan.negative_texts)) for plan in plans]
    # Negative prompts separately, so that they do not change the bits of the prompts.
    encoder.encode((text, n) for plan, n in zip(plans, counts, strict=True) for text in plan.texts)
    encoder.encode(
        (text, n) for plan, n in zip(plans, counts, strict=True) for text in plan.negative_texts
    )
    size, negative_size = sizes or (None, None)
    negative: tuple[tuple[int, Conditioning], ...]
    prompted = []
    for plan, count in zip(plans, counts, strict=True):
        scripts = tuple(
            Script(encoder.lines(lines, count, size), weight) for lines, weight in plan.scripts
        )
        if plan.negative is None:
            negative = ((steps, zeros_like(scripts[0].lines[0][1], negative_size)),)
        else:
            negative = encoder.lines(plan.negative, count, negative_size)
        prompted.append(Prompted(scripts, Script(negative)))
    return prompted


@dataclass(frozen=True)
class TextPlan:
    """The texts of a prompt, each with its last step.

    Attributes:
        scripts: (texts, weight) of each part that AND joins.
        negative: None if zeros stand for it.
    """

    scripts: list[tuple[list[tuple[int, str]], float]]
    negative: list[tuple[int, str]] | None

    @property
    def texts(self) -> list[str]:
        """All texts to draw."""
        return [text for lines, _ in self.scripts for _, text in lines]

    @property
    def negative_texts(self) -> list[str]:
        """All texts to steer away from."""
        return [text for _, text in self.negative or ()]


def plan_texts(
    prompts: Sequence[str], negatives: Sequence[str] | None, steps: int, steps_before: int
) -> list[TextPlan]:
    """Parse prompts and negative prompts."""
    scripts = [
        [(schedule(text, steps, steps_before), weight) for text, weight in split(prompt)]
        for prompt in prompts
    ]
    if negatives is None:
        return [TextPlan(script, None) for script in scripts]
    others = [schedule(text, steps, steps_before) for text in negatives]
    return [TextPlan(script, other) for script, other in zip(scripts, others, strict=True)]


def zeros_like(text: Conditioning, size: Tensor | None) -> Conditioning:
    """Return zeros in the form of a text's conditioning, with another size."""
    assert text.context is not None  # every text has one
    pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
    return Conditioning(torch.zeros_like(text.context), pooled, size)


class PromptEncoder:
    """Encodes texts to states; each distinct chunk is encoded once."""

    def __init__(self, models: Sequence[TextModel], clip_skip: int, xl: bool) -> None:
        self.models, self.xl, self.skip = models, xl, clip_skip + xl
        self.chunks: dict[str, list[list[Chunk]]] = {}  # of each text, for each model
        self.states: list[dict[tuple[int, ...], tuple[Tensor, Tensor]]] = [{} for _ in models]
        self.conditionings: dict[tuple[str, int, int], Conditioning] = {}

    def count(self, text: str) -> int:
        """Count the chunks of a text; a new word may be longer for one model than for another."""
        if text not in self.chunks:
            self.chunks[text] = [cut(model.tokenizer, text) for model in self.models]
        return max(map(len, self.chunks[text]))

    def padded(self, text: str, count: int) -> Iterator[list[Chunk]]:
        """Yield the chunks of a text for each model, with empty ones at the end."""
        for model, chunks in zip(self.models, self.chunks[text], strict=True):
            yield chunks + cut(model.tokenizer, "") * (count - len(chunks))

    @torch.no_grad()
    def encode(self, texts: Iterable[tuple[str, int]]) -> None:
        """Encode (text, count of chunks), for ``__call__``."""
        new: list[dict[tuple[int, ...], None]] = [{} for _ in self.models]
        for text, count in texts:
            for chunks, rows, known in zip(self.padded(text, count), new, self.states, strict=True):
                rows |= {chunk.ids: None for chunk in chunks if chunk.ids not in known}
        for model, unread, known in zip(self.models, map(list, new), self.states, strict=True):
            device = next(model.encoder.parameters()).device
            for begin in range(0, len(unread), ROWS):
                part = unread[begin : begin + ROWS]
                states = model.encoder(torch.tensor(part, device=device), self.skip, not self.xl)
                pairs = zip(states.context, states.pooled, strict=True)
                known |= dict(zip(part, pairs, strict=True))

    def lines(
        self, lines: Iterable[tuple[int, str]], count: int, size: Tensor | None
    ) -> tuple[tuple[int, Conditioning], ...]:
        """Return the conditioning of encoded texts, as ``count`` chunks each."""
        return tuple((end, self(text, count, size)) for end, text in lines)

    def __call__(self, text: str, count: int, size: Tensor | None) -> Conditioning:
        """Return the conditioning of an encoded text, as ``count`` chunks."""
        key = (text, count, id(size))
        if key not in self.conditionings:
            contexts, pooled = [], None
            for chunks, known in zip(self.padded(text, count), self.states, strict=True):
                rows = [weighted(known[chunk.ids][0], chunk.weights) for chunk in chunks]
                contexts.append(torch.cat(rows))
                pooled = known[chunks[0].ids][1]
            context = torch.cat(contexts, dim=-1)
            self.conditionings[key] = Conditioning(
                context, pooled if self.xl else None, size, text=text
            )
        return self.conditionings[key]


def weighted(states: Tensor, weights: Sequence[float]) -> Tensor:
    """Multiply the states (77, D) of a chunk's tokens by their weights (77,).

    As in A1111, all are then scaled by one factor that preserves their mean over tokens and D.
    A1111 takes that mean over the whole batch; here it is the chunk's own, so that no other prompt
    changes it.
    """
    if all(weight == 1 for weight in weights):
        return states
    plain = states.float()
    scaled = plain * torch.tensor(weights, dtype=torch.float32, device=states.device)[:, None]
    return (scaled * (plain.mean() / scaled.mean())).to(states)


def negative_for_each(negative: str | Sequence[str] | None, prompts: Sequence[str]) -> list[str]:
    """Return a negative prompt for each prompt. Raises ArgumentError for a wrong number of them."""
    if negative and not isinstance(negative, str):
        values = list(negative)
    else:
        values = [negative if isinstance(negative, str) else ""] * len(prompts)
    if len(values) != len(prompts):
        raise ArgumentError(
            f"negative_prompt has {len(values)} texts for {len(prompts)} prompts; "
            "give one, or one for each"
        )
    return values


def time_ids(height: int, width: int, count: int, aesthetic_score: float) -> list[float]:
    """Return the ``count`` sizes, 5 or 6, that SDXL reads (Podell et al. 2023, section 2.2).

    These are the picture's size before it was cropped, the crop's corner, and the size to draw; the
    refiner reads a score instead of the last.
    """
    end = [aesthetic_score] if count == 5 else [height, width]
    return [height, width, 0, 0, *end]
