"""The classes of a model that reads no text: what its prompts mean.

A prompt is a class's name or number, and "" is no class. A model that is to be guided is also
trained without a class, which has a label of its own: the last one (Ho & Salimans 2022, section
3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ldm.config import ClassifierConfig, UNetConfig
from ldm.errors import ArgumentError, CheckpointError, did_you_mean
from ldm.text.conditioning import Conditioning, Prompted, Script

NEAR, SHOWN = 4, 12  # names that an error offers, for a wrong one and for none


@dataclass(frozen=True)
class Classes:
    """The classes of a model, and how its U-Net is conditioned on them.

    count: of classes; 0 for a model that is unconditional.
    names: number → its names, separated by commas, as ``id2label`` of diffusers' DiTPipeline.
    in_unet: whether the U-Net reads the class; else only a classifier knows the classes.
    no_class: the U-Net's label for "no class"; None if it has none.
    """

    count: int
    names: Mapping[int, str]
    in_unet: bool
    no_class: int | None = None

    @classmethod
    def of(
        cls,
        unet: UNetConfig,
        classifier: ClassifierConfig | None,
        id2label: Mapping[str, str] | None,
    ) -> Classes:
        """Find the classes of a U-Net without text, or of the classifier beside it.

        Raises CheckpointError for an ``id2label`` that does not fit the U-Net or the classifier.
        """
        if unet.class_embed_type is not None:
            raise CheckpointError(
                f"class_embed_type of the U-Net is {unet.class_embed_type!r}, which is not "
                "supported where pictures are drawn; only num_class_embeds is"
            )
        try:
            names = {int(number): str(name) for number, name in (id2label or {}).items()}
        except (AttributeError, TypeError, ValueError):
            names = {-1: ""}
        embedded, classified = unet.num_class_embeds, classifier and classifier.num_classes
        if names and embedded is None and classified is None:
            raise CheckpointError(
                "id2label in model_index.json names classes, but the U-Net is told none and there "
                "is no classifier; leave it out"
            )
        count = len(names) or classified or embedded or 0
        if sorted(names) not in ([], list(range(count))):
            raise CheckpointError(
                f'id2label in model_index.json is {id2label!r:.60}; expected {{"0": "a name", …}} '
                "with a name for each number from 0 on"
            )
        if embedded not in (None, count, count + 1):
            raise CheckpointError(
                f"the U-Net has {embedded} num_class_embeds for {count} classes; expected {count}, "
                f'or {count + 1} where the last one is "no class"'
            )
        if classified not in (None, count):
            raise CheckpointError(f"the classifier knows {classified} classes, the model {count}")
        no_class = count if embedded is not None and embedded > count else None
        return cls(count, names, embedded is not None, no_class)

    def read(self, text: str, argument: str = "prompt") -> int | None:
        """Find the number of a class by its name or number, in any case; None for "", no class.

        Raises ArgumentError, with the nearest names, for an unknown or an ambiguous name.
        """
        wanted = text.strip()
        if not wanted:
            return None
        if not self.count:
            raise ArgumentError(
                f"{argument} is {text!r:.60}, but this model reads no text and has no classes; "
                "leave it out"
            )
        for same in (str, str.casefold):
            found = [i for i, name in self.spoken if same(name) == same(wanted)]
            if len(set(found)) > 1:
                raise ArgumentError(
                    f"{wanted!r} is the name of the classes {' and '.join(map(str, found))}; "
                    "give the number"
                )
            if found:
                return found[0]
        if wanted.isdecimal() and int(wanted) < self.count:
            return int(wanted)
        raise ArgumentError(
            f"{argument} is {text!r:.60}, which is no class of this model; {self.hint(wanted)}"
        )

    @property
    def spoken(self) -> list[tuple[int, str]]:
        """(number, name) of each way to name a class: each name alone, and all together."""
        return [
            (number, name.strip())
            for number, names in self.names.items()
            for name in dict.fromkeys([names, *names.split(",")])
        ]

    def hint(self, wanted: str = "") -> str:
        """Return what to give instead, in words."""
        plain = {name.casefold(): name for _, name in self.spoken}
        if near := did_you_mean(wanted.casefold(), plain, NEAR):
            return near
        numbers = f"a number from 0 to {self.count - 1}"
        shown = [name for _, name in sorted(self.names.items())]
        more = ", …" if len(shown) > SHOWN else ""
        names = f", or a name: {', '.join(shown[:SHOWN])}{more}" if shown else ""
        return f"give {numbers}{names}"

    def prompted(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        guided: bool,
        device: torch.device,
    ) -> list[Prompted]:
        """Return the U-Net's conditioning for each prompt and, if ``guided``, each negative one.

        Raises ArgumentError for an unknown class, and if "no class" is needed, but not known.
        """
        prompted = []
        for prompt, negative in zip(prompts, negatives, strict=True):
            wanted, unwanted = self.read(prompt), self.read(negative, "negative_prompt")
            if self.in_unet and wanted is None and self.no_class is None:
                raise ArgumentError(
                    f"prompt is empty, but this model draws one of its classes: {self.hint()}"
                )
            if guided and self.no_class is None and (unwanted is None or not self.in_unet):
                other_way = ", or give a class as negative_prompt" if self.in_unet else ""
                raise ArgumentError(
                    "guidance_scale is above 1, but this model has not learned to draw without a "
                    f"class, which guidance compares with; set it to 1{other_way}"
                )
            script = Script(((1, self.conditioning(wanted, device)),))
            # Without guidance the U-Net is not called with it.
            other = Script(((1, self.conditioning(unwanted if guided else wanted, device)),))
            prompted.append(Prompted((script,), other))
        return prompted

    def conditioning(self, number: int | None, device: torch.device) -> Conditioning:
        """Return the U-Net's conditioning for one class."""
        if not self.in_unet:
            return Conditioning()
        number = self.no_class if number is None else number
        return Conditioning(class_labels=torch.tensor(number, device=device))
