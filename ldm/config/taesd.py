"""The configuration of the tiny autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ldm.config.base import Config
from ldm.errors import CheckpointError

MOST_BLOCKS = 100  # of one coder


@dataclass(frozen=True)
class TAESDConfig(Config):
    """``AutoencoderTiny``: TAESD and TAESDXL by default, which differ in their weights only."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)  # all alike
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)  # residual blocks a level, finest first
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)  # coarsest first
    scaling_factor: float = 1.0  # it learned the scaled latents of the VAE that it stands for

    EXTRA: ClassVar[dict[str, Any]] = {
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    }
    # The first two are for storing latents in 8 bits; the third repeats decoder_block_out_channels.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"latent_magnitude", "latent_shift", "block_out_channels", "force_upcast"}
    )
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("relu",),
        "upsample_fn": ("nearest",),
        "upsampling_scaling_factor": (2,),
        "shift_factor": (0, None),
    }

    def __post_init__(self) -> None:
        levels = len(self.num_decoder_blocks)
        for coder in ("encoder", "decoder"):
            widths: tuple[int, ...] = getattr(self, f"{coder}_block_out_channels")
            blocks: tuple[int, ...] = getattr(self, f"num_{coder}_blocks")
            if len(widths) != levels or len(blocks) != levels or not 1 <= levels <= 10:
                raise CheckpointError(
                    f"num_{coder}_blocks and {coder}_block_out_channels have {len(blocks)} and "
                    f"{len(widths)} levels; both coders need the same number, at most 10"
                )
            if len(set(widths)) > 1 or not widths[0]:
                raise CheckpointError(
                    f"{coder}_block_out_channels is {list(widths)}; the levels must be of one width"
                )
            if sum(blocks) > MOST_BLOCKS:
                raise CheckpointError(
                    f"num_{coder}_blocks is {list(blocks)}; at most {MOST_BLOCKS} in all work"
                )

    @property
    def scale(self) -> int:
        """Pixels per latent along each side: 8 for four levels."""
        return 2 ** (len(self.num_decoder_blocks) - 1)
