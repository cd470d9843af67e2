"""Train the text encoder: its sentence state learns to be a teacher's sentence embedding.

The states of the words, which the U-Net attends to, learn which colour, number and place belongs to
which thing: a reader predicts it from them, for the texts that have readings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.folder import save_component
from ldm.clip import CLIPTextEncoder
from ldm.config import CLIPTextConfig
from ldm.config.settings import read_table, within
from ldm.errors import ArgumentError
from ldm.text.tokenizer import CLIPTokenizer
from ldm.training.binding_head import UNKNOWN, Reader, reading_figures, reading_loss
from ldm.training.config import TrainConfig
from ldm.training.data import EmbeddedTexts
from ldm.training.objectives import distillation_loss
from ldm.training.recipes.base import Recipe
from ldm.training.warm_start import begin_with

GROUP = 96  # texts that the student takes at once


class Student(nn.Module):
    """The text encoder and, for training only, what maps and reads its states.

    head: maps the pooled state to the teacher's space. reader: reads the context; None where no
    text has readings.
    """

    def __init__(self, text_encoder: CLIPTextEncoder, dim: int, reader: Reader | None) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.head = nn.Linear(text_encoder.config.hidden_size, dim)
        self.reader = reader

    def forward(self, ids: Tensor, length: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Token ids (B,N), tokens (B,) → sentence vectors (B,E), logits (B, values) by field.

        Texts of like lengths go together, cut behind the longest's end: half the work of a batch.
        """
        order = length.argsort()
        parts = [
            self._alike(ids[group, : int(length[group[-1]])], length[group])
            for group in order.split(GROUP)
        ]
        back = order.argsort()
        vectors, read = zip(*parts, strict=True)
        fields = zip(*read, strict=True)
        return torch.cat(vectors)[back], [torch.cat(found)[back] for found in fields]

    def _alike(self, ids: Tensor, length: Tensor) -> tuple[Tensor, list[Tensor]]:
        states = self.text_encoder(ids)
        read = [] if self.reader is None else self.reader(states.context, length)
        return self.head(states.pooled), read


@dataclass
class TextOptions:
    """The table ``[options]``."""

    temperature: float = within("(0, inf)")  # of the contrastive term
    # Longer texts are left out, since a batch costs what its longest costs.
    max_tokens: int = within("[3, 77]")
    held_out: int = within("[1, inf)")  # texts to measure with
    reading_weight: float = within("[0, inf)", 1.0)  # of the reader's loss
    caption_share: float = within("[0, 1]", 0.5)  # of texts with readings, in a batch


class TextRecipe(Recipe[Student]):
    """Learns the teacher's sentence embeddings, and which word of a text describes which."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.options = options = read_table(TextOptions, config.options, "options.")
        self.data = data = EmbeddedTexts(config.data)
        tokenizer = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
        self.ids = torch.tensor(tokenizer(data.texts), dtype=torch.int32)
        self.length = (self.ids == tokenizer.eos_token_id).int().argmax(dim=1) + 1
        short = (self.length <= options.max_tokens).nonzero()[:, 0]
        if options.held_out >= len(short):
            raise ArgumentError(
                f"options.held_out is {options.held_out}, but {config.data} has {len(short)} texts "
                f"of at most {options.max_tokens} tokens; hold out fewer"
            )
        order = short[
            torch.randperm(len(short), generator=torch.Generator().manual_seed(config.seed))
        ]
        self.train, self.held_out = order.split([len(order) - options.held_out, options.held_out])
        self.has_reading = (data.readings != UNKNOWN).any(dim=1)  # bool (N,)
        self.share, self.chances = draw_chances(self.has_reading[self.train], options.caption_share)

        encoder = CLIPTextEncoder(CLIPTextConfig.from_dict(config.model))
        # As in Radford et al. 2021, section 2.5: PyTorch's N(0, 1) embeddings drown the rest.
        nn.init.normal_(encoder.text_model.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(encoder.text_model.embeddings.position_embedding.weight, std=0.01)
        begin_with(encoder, config.start)
        reader = None
        if self.share:
            width, heads = encoder.config.hidden_size, encoder.config.num_attention_heads
            reader = Reader(data.fields, data.values, width, heads)
        self.model = Student(encoder, data.embeddings.shape[1], reader)

    def rows(self, indices: Tensor) -> dict[str, Tensor]:
        """Return the inputs of the loss for texts with these indices (B,).

        The ids (B,N) are cut behind the longest text's end: a causal encoder ignores padding.
        """
        length = self.length[indices]
        return {
            "ids": self.ids[indices, : int(length.max())].long(),
            "length": length,
            "target": self.data.targets(indices),
            "readings": self.data.readings[indices],
        }

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = self.chances.multinomial(
            self.config.batch_size, replacement=True, generator=generator
        )
        return self.rows(self.train[drawn])

    def example(self, count: int) -> dict[str, Tensor]:
        return self.rows(self.train[:count])

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        vectors, read = model(batch["ids"], batch["length"])
        loss = distillation_loss(vectors, batch["target"], self.options.temperature)
        if not read:
            return loss, {}
        reading = reading_loss(read, batch["readings"], self.share)
        found = {"distillation": loss, "reading": reading}
        return loss + self.options.reading_weight * reading, found

    def examples(self) -> tuple[int, int]:
        return len(self.train), len(self.held_out)

    def evaluate(self, model: Student) -> tuple[Image.Image | None, dict[str, float]]:
        device, vectors, guesses = next(model.parameters()).device, [], []
        for part in self.held_out.split(256):
            rows = self.rows(part)
            student, read = model(rows["ids"].to(device), rows["length"].to(device))
            vectors.append(student.float().cpu())
            guesses += [torch.stack([x.argmax(dim=1) for x in read], dim=1).cpu()] if read else []
        indices = self.held_out[:1024]
        student, teacher = torch.cat(vectors)[:1024], self.data.targets(indices)
        similarity = nn.functional.normalize(student, dim=-1) @ teacher.T
        right = similarity.argmax(dim=1) == torch.arange(len(indices))
        figures = {
            "cosine": float(similarity.diagonal().mean()),
            "top1_of_1024": float(right.float().mean()),
        }
        known = self.has_reading[self.held_out]
        if guesses and known.any():
            readings = self.data.readings[self.held_out[known]]
            figures |= reading_figures(
                torch.cat(guesses)[known], readings, self.data.fields, self.data.values
            )
        return None, figures

    def save(self, model: Student, folder: Path) -> None:
        save_component(model.text_encoder, folder / "text_encoder")


def draw_chances(has_reading: Tensor, share: float) -> tuple[float, Tensor]:
    """Return the chance of each text to be drawn (N,), such that ``share`` have readings.

    has_reading: bool (N,). Returns the share too: 0 or 1 where only one kind of texts is there.
    """
    count = int(has_reading.sum())
    if count in (0, len(has_reading)):
        share = float(count > 0)
    chances = torch.where(
        has_reading, share / max(count, 1), (1 - share) / max(len(has_reading) - count, 1)
    )
    return share, chances
