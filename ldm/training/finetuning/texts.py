"""What a U-Net reads of captions, as it draws: one for training with and without gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.text.conditioning import TextModel


def text_states(
    models: Sequence[TextModel], ids: Tensor, xl: bool, clip_skip: int = 0
) -> dict[str, Tensor]:
    """Encode the ids of captions, (B, encoders, 77), to ``UNet.forward``'s context and pooled.

    As ``ldm.text.conditioning.encode_prompts`` does: SDXL reads the penultimate layers' states,
    without the final norm (Podell et al. 2023, section 2.1).
    """
    rows = zip(models, ids.long().unbind(1), strict=True)
    states = [model.encoder(each, clip_skip + xl, not xl) for model, each in rows]
    found = {"context": torch.cat([each.context for each in states], dim=-1)}
    return found | {"pooled": states[-1].pooled} if xl else found


def unread_layers(encoder: int, encoders: int, xl: bool, clip_skip: int = 0) -> int:
    """Return how many of the last layers of a text encoder have no influence on a picture.

    SDXL's last encoder is read to the end, for its pooled state.
    """
    return 0 if xl and encoder == encoders - 1 else clip_skip + xl
