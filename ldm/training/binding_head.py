"""What a U-Net must find in a text's token states: which colour, number and place is whose.

In training only, a reader predicts each field of what the text says from the states, which it
reads as a U-Net does: by cross-attention. So the states of words learn what belongs together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNKNOWN = -100  # of a text that nothing is known of


class Reader(nn.Module):
    """Answers for each field, such as "colour 2": one learnt query a field, a classifier a kind.

    values: kind → its values. Fields of a kind ("colour 1", "colour 2") share these and the
    classifier: a colour is a colour wherever it stands.
    """

    def __init__(
        self, fields: list[str], values: dict[str, list[str]], width: int, heads: int
    ) -> None:
        super().__init__()
        self.kinds = [kind_of(field) for field in fields]
        self.queries = nn.Parameter(torch.randn(len(fields), width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.answers = nn.ModuleDict({k: nn.Linear(width, len(v)) for k, v in values.items()})

    def forward(self, context: Tensor, length: Tensor) -> list[Tensor]:
        """States (B,N,D) of texts of ``length`` (B,) tokens → logits (B, values) of each field.

        What stands behind the end is not read: it would not be there in a shorter batch.
        """
        behind = torch.arange(context.shape[1], device=context.device) >= length[:, None]
        queries = self.queries.expand(len(context), -1, -1)  # (B,F,D)
        found, _ = self.attention(
            queries, context, context, key_padding_mask=behind, need_weights=False
        )
        return [self.answers[kind](x) for kind, x in zip(self.kinds, found.unbind(1), strict=True)]


def kind_of(field: str) -> str:
    """ "colour 2" → "colour"."""
    return field.partition(" ")[0]


def reading_loss(logits: list[Tensor], says: Tensor, share: float) -> Tensor:
    """Mean cross-entropy of the fields of texts with readings, in nats.

    logits: (B, values) of each of F fields; says: (B,F), UNKNOWN where nothing is to be read.
    share: of the texts that have readings, as they are drawn. Divided by it instead of by the
    number that this batch happens to have, the loss is a mean over the rows, so that parts of a
    batch on many processes give what the whole gives.
    """
    errors = [
        F.cross_entropy(x.float(), y, ignore_index=UNKNOWN, reduction="sum")
        for x, y in zip(logits, says.unbind(1), strict=True)
    ]
    return torch.stack(errors).sum() / (says.numel() * share)


def reading_figures(
    guesses: Tensor, says: Tensor, fields: list[str], values: dict[str, list[str]]
) -> dict[str, float]:
    """How well texts with readings are read; both (B,F).

    read: share of all fields that are right. read_two: of the texts with two things, the share
    whose nouns and colours are all right, which needs more than knowing the words.
    """
    right = guesses == says
    figures = {"read": float(right.float().mean())}
    if "noun 2" in fields and "none" in values["noun"]:
        two = says[:, fields.index("noun 2")] != values["noun"].index("none")
        things = [i for i, field in enumerate(fields) if kind_of(field) in ("noun", "colour")]
        if two.any():
            figures["read_two"] = float(right[two][:, things].all(dim=1).float().mean())
    return figures
