"""The settings that the recipes share that learn from the latents of captioned pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ldm.config.settings import within
from ldm.training.data.caption_changes import CaptionChanges
from ldm.training.recipes.prior import PriorOptions


@dataclass(kw_only=True)
class CaptionedOptions(PriorOptions, CaptionChanges):
    """What the tables ``[options]`` of these recipes share."""

    # How the pictures are read (see DataOptions). With ``flip``, latents of the mirrored pictures
    # are kept beside the others.
    data: dict[str, Any] = field(default_factory=dict)
    # {multiple, max_ratio} for batches of several proportions, of about ``data.size``² px each,
    # see bucket_sizes; without it, all pictures are cropped to squares.
    buckets: dict[str, Any] | None = None
    # Whether the text encoders' states of all captions are computed once and kept on the disk, too:
    # 2·77·D bytes each, D the width of all encoders together; for captions that do not change.
    keep_contexts: bool = False
    caption_dropout: float = within("[0, 1]", 0.1)  # share of captions made "", for guidance
    clip_skip: int = within("[0, inf)", 0)  # layers of the text encoders left out, as diffusers
    # Strength of noise that is one number for each channel of a picture, so that the model learns
    # to change its mean (Guttenberg 2023).
    offset_noise: float = within("[0, inf)", 0.0)
    min_snr_gamma: float | None = within("(0, inf)", None)  # see ``diffusion_weight``
    # Times are drawn more often where shapes are learnt, see ``draw_times``; without
    # ``logit_std``, all equally often.
    logit_mean: float = 0.0
    logit_std: float | None = within("(0, inf)", None)
