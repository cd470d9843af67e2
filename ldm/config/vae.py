"""The configuration of the VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ldm.config.base import Config, check_groups
from ldm.errors import CheckpointError


@dataclass(frozen=True)
class VAEConfig(Config):
    """``AutoencoderKL``: SD 1.x by default."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)  # one level each, /2 between levels
    layers_per_block: int = 2  # residual blocks a level in the encoder; the decoder has one more
    norm_num_groups: int = 32
    sample_size: int = 512  # pixels of the training pictures
    scaling_factor: float = 0.18215  # latents × this have about unit variance

    EXTRA: ClassVar[dict[str, Any]] = {"_class_name": "AutoencoderKL", "act_fn": "silu"}
    # A rule about dtypes; ours is in the pipeline.
    IGNORED: ClassVar[frozenset[str]] = frozenset({"force_upcast"})
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("silu",),
        "mid_block_add_attention": (True,),
        "use_quant_conv": (True,),
        "use_post_quant_conv": (True,),
    }

    def __post_init__(self) -> None:
        check_groups(self.block_out_channels, self.norm_num_groups)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> VAEConfig:
        """As ``Config.from_dict``; the block types must be SD's convolutional ones."""
        values = dict(values)
        for key, kind in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            found = values.pop(key, [])
            if not isinstance(found, list) or set(map(str, found)) - {kind}:
                raise CheckpointError(f"{source}: {key} is {found}; only {kind!r} is supported")
        return super().from_dict(values, source)

    def to_dict(self) -> dict[str, Any]:
        levels = len(self.block_out_channels)
        blocks = {
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        }
        return {**super().to_dict(), **blocks}

    @property
    def scale(self) -> int:
        """Pixels per latent along each side: 8 for four levels."""
        return 2 ** (len(self.block_out_channels) - 1)
