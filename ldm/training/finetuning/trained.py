"""All that a fine-tuning trains of a model, as one module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldm.pipeline import Pipeline
from ldm.training.finetuning.adapters import AdapterOptions, Adapters
from ldm.training.finetuning.texts import text_states, unread_layers
from ldm.training.finetuning.words import Words


class Frozen:
    """What training uses but does not change: it is neither copied, nor averaged or saved."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self


class Trained(nn.Module):
    """What is trained of a pipeline's parts; its forward is what runs on many processes.

    Attributes:
        parts: by the pipeline's names, "unet", "text_encoder" or "text_encoder_2": `Adapters` on
            that part, whose own weights are frozen, or the part itself; and "words": `Words`.
    """

    def __init__(self, pipe: Pipeline, parts: Mapping[str, nn.Module], clip_skip: int = 0) -> None:
        super().__init__()
        self.frozen, self.clip_skip = Frozen(pipe), clip_skip
        self.parts = nn.ModuleDict(dict(parts))
        self.attach()

    @property
    def pipe(self) -> Pipeline:
        """The pipeline that draws with what is trained."""
        pipe = self.frozen.pipe
        own = {n: part for n, part in self.parts.items() if not isinstance(part, Adapters | Words)}
        if any(getattr(pipe, name) is not part for name, part in own.items()):  # this is a copy
            pipe = Pipeline(**pipe.parts | own)
            self.frozen = Frozen(pipe)
        return pipe

    @property
    def trains_text(self) -> bool:
        """Whether what is read of a caption changes in training."""
        return any(name != "unet" for name in self.parts)

    @property
    def words(self) -> Words | None:
        """The new words, if there are any."""
        return cast("Words", self.parts["words"]) if "words" in self.parts else None

    @property
    def adapters(self) -> dict[str, Adapters]:
        """The adapters, by the parts that they change."""
        return {name: part for name, part in self.parts.items() if isinstance(part, Adapters)}

    def attach(self) -> None:
        """Let the pipeline's parts compute with what is trained here."""
        for name, part in self.parts.items():
            if isinstance(part, Adapters):
                part.attach(getattr(self.pipe, name))
            elif isinstance(part, Words):
                part.attach(self.pipe)

    @contextlib.contextmanager
    def in_place_of(self, other: Trained) -> Iterator[Pipeline]:
        """Let the pipeline draw with this one, such as the average of ``other``."""
        self.attach()
        try:
            yield self.pipe
        finally:
            other.attach()

    @contextlib.contextmanager
    def without_adapters(self) -> Iterator[Pipeline]:
        """Let the pipeline compute as the frozen base; whole networks stay as they are trained."""
        for name, part in self.adapters.items():
            part.detach(getattr(self.pipe, name))
        try:
            yield self.pipe
        finally:
            self.attach()

    def forward(self, x: Tensor, t: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Predict as ``UNet.forward``.

        inputs: its other arguments by name; "ids", (B, encoders, 77), in the place of the texts'.
        """
        given = dict(inputs)
        ids = given.pop("ids", None)
        if self.words is not None:
            self.words.attach(self.pipe)  # anew: each step has its own gradient
        if ids is not None:
            with torch.set_grad_enabled(self.trains_text and torch.is_grad_enabled()):
                given |= text_states(self.pipe.text_models, ids, self.pipe.xl, self.clip_skip)
        return self.pipe.unet(x, t, **given)


def adapters_of(pipe: Pipeline, options: AdapterOptions, text: bool, clip_skip: int) -> Trained:
    """Return what trains new adapters alone: see ``adapter_parts``."""
    return Trained(pipe, adapter_parts(pipe, options, text, clip_skip), clip_skip)


def adapter_parts(
    pipe: Pipeline, options: AdapterOptions, text: bool, clip_skip: int
) -> dict[str, nn.Module]:
    """Return new adapters of a pipeline's U-Net and, if ``text``, of its text encoders.

    Raises ArgumentError as `Adapters` does.
    """
    parts: dict[str, nn.Module] = {"unet": Adapters(pipe.unet, options)}
    names = list(pipe.inversions.models)
    for i, name in enumerate(names if text else ()):
        unread = unread_layers(i, len(names), pipe.xl, clip_skip)
        parts[name] = Adapters(getattr(pipe, name), options, unread)
    return parts
