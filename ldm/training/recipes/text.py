"""Train the text encoder: its sentence state learns to be a teacher's sentence embedding.

The states of the words, which the U-Net attends to, get their meaning on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.assets import asset_path
from ldm.checkpoints.folder import save_component
from ldm.clip import CLIPTextEncoder
from ldm.config import CLIPTextConfig
from ldm.tokenizer import CLIPTokenizer
from ldm.training.config import TrainConfig
from ldm.training.data import EmbeddedTexts
from ldm.training.objectives import distillation_loss
from ldm.training.start import begin_with
from ldm.training.tables import read_table, within


class Student(nn.Module):
    """The text encoder and, for training only, a map of its pooled state to the teacher's space."""

    def __init__(self, text_encoder: CLIPTextEncoder, dim: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.head = nn.Linear(text_encoder.config.hidden_size, dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B,N) → sentence vectors (B,E)."""
        return self.head(self.text_encoder(ids).pooled)


@dataclass
class TextOptions:
    """The table ``[options]``."""

    temperature: float = within("(0, inf)")  # of the contrastive term
    # Longer texts are left out, since a batch costs what its longest costs.
    max_tokens: int = within("[3, 77]")
    held_out: int = within("[1, inf)")  # texts to measure with


class TextRecipe:
    """Learns the teacher's sentence embeddings."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.options = options = read_table(TextOptions, config.options, "options.")
        self.data = EmbeddedTexts(config.data)
        tokenizer = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
        self.ids = torch.tensor(tokenizer(self.data.texts), dtype=torch.int32)
        self.length = (self.ids == tokenizer.eos_token_id).int().argmax(dim=1) + 1
        short = (self.length <= options.max_tokens).nonzero()[:, 0]
        order = short[
            torch.randperm(len(short), generator=torch.Generator().manual_seed(config.seed))
        ]
        self.train, self.held_out = order.split([len(order) - options.held_out, options.held_out])
        encoder = CLIPTextEncoder(CLIPTextConfig.from_dict(config.model))
        # As in Radford et al. 2021, section 2.5: PyTorch's N(0, 1) embeddings drown the rest.
        nn.init.normal_(encoder.text_model.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(encoder.text_model.embeddings.position_embedding.weight, std=0.01)
        begin_with(encoder, config.start)
        self.model = Student(encoder, self.data.embeddings.shape[1])

    def prepare(self, accelerator: Accelerator) -> None:
        """Nothing to do."""

    def tokens(self, indices: Tensor) -> Tensor:
        """Ids (B,N), cut behind the longest text's end: a causal encoder ignores padding."""
        return self.ids[indices, : int(self.length[indices].max())].long()

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        indices = self.train[
            torch.randint(len(self.train), (self.config.batch_size,), generator=generator)
        ]
        return {"ids": self.tokens(indices), "target": self.data.targets(indices)}

    def example(self, count: int) -> dict[str, Tensor]:
        indices = self.train[:count]
        return {"ids": self.tokens(indices), "target": self.data.targets(indices)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return distillation_loss(model(batch["ids"]), batch["target"], self.options.temperature), {}

    def evaluate(self, model: nn.Module) -> tuple[Image.Image | None, dict[str, float]]:
        indices = self.held_out[:1024]
        student = torch.cat([model(self.tokens(part)) for part in indices.split(256)]).float()
        teacher = self.data.targets(indices)
        similarity = nn.functional.normalize(student, dim=-1) @ teacher.T
        right = similarity.argmax(dim=1) == torch.arange(len(indices))
        return None, {
            "cosine": float(similarity.diagonal().mean()),
            "top1_of_1024": float(right.float().mean()),
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        save_component(model.text_encoder, folder / "text_encoder")
