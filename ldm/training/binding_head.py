"""A head that trains token states to bind attributes: which colour, number and place is whose.

In training only, a reader predicts each field of a text's reading from the token states, by
cross-attention as in a U-Net. So the states learn which words belong together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNKNOWN = -100  # a field of a text without a reading; ``F.cross_entropy`` ignores it


class Reader(nn.Module):
    """Predicts each field, such as "colour 2": a learnt query per field, a classifier per kind.

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
        """Map states (B,N,D) of texts of ``length`` (B,) tokens → logits (B, values) of each field.

        States behind a text's end are masked: a shorter batch would not have them.
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


def reading_loss(logits: list[Tensor], readings: Tensor, share: float) -> Tensor:
    """Compute the mean cross-entropy of the fields of texts with readings, in nats.

    logits: (B, values) of each of F fields; readings: (B,F), UNKNOWN for a text without one.
    share: expected share of texts with readings in a batch. Divided by it, not by the number of
    them in this batch, the loss is a mean over rows, so that the parts of a batch on several
    processes average to the loss of the whole batch.
    """
    errors = [
        F.cross_entropy(x.float(), y, ignore_index=UNKNOWN, reduction="sum")
        for x, y in zip(logits, readings.unbind(1), strict=True)
    ]
    return torch.stack(errors).sum() / (readings.numel() * share)


def reading_figures(
    guesses: Tensor, readings: Tensor, fields: list[str], values: dict[str, list[str]]
) -> dict[str, float]:
    """Measure the predictions for texts with readings; both (B,F).

    read: share of all fields that are right. read_two: of the texts with two things, the share
    whose nouns and colours are all right, which needs more than knowing the words.
    """
    right = guesses == readings
    figures = {"read": float(right.float().mean())}
    if "noun 2" in fields and "none" in values["noun"]:
        two = readings[:, fields.index("noun 2")] != values["noun"].index("none")
        things = [i for i, field in enumerate(fields) if kind_of(field) in ("noun", "colour")]
        if two.any():
            figures["read_two"] = float(right[two][:, things].all(dim=1).float().mean())
    return figures
