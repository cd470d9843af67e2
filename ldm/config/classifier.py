"""The configuration of a classifier of noisy pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ldm.config.base import check_choice
from ldm.config.blocks import BlocksConfig
from ldm.errors import CheckpointError


@dataclass(frozen=True)
class ClassifierConfig(BlocksConfig):
    """``Classifier``: by default the one for 64×64 ImageNet of Dhariwal & Nichol 2021."""

    sample_size: int = 64  # pixels along a side: the positions that the pooling knows
    num_classes: int = 1000
    block_out_channels: tuple[int, ...] = (128, 256, 384, 512)
    layers_per_block: int = 4
    down_block_types: tuple[str, ...] = ("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3
    downsample_type: str = "resnet"
    resnet_time_scale_shift: str = "scale_shift"
    attention_head_dim: int | tuple[int, ...] | None = 64
    attn_norm_num_groups: int | None = 32

    EXTRA: ClassVar[dict[str, Any]] = BlocksConfig.EXTRA | {"_class_name": "Classifier"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 2:
            raise CheckpointError(f"num_classes is {self.num_classes}; expected 2 or more")
        if self.sample_size < 1 or self.sample_size % 2 ** (self.levels - 1):
            raise CheckpointError(
                f"sample_size is {self.sample_size}, which cannot be halved "
                f"{self.levels - 1} times, as block_out_channels has it"
            )

    @property
    def attending(self) -> list[bool]:
        """As in U-Nets; the pooling attends on the coarsest level in any case."""
        return [*super().attending[:-1], True]

    @property
    def pooled_size(self) -> int:
        """Pixels along a side on the coarsest level."""
        return self.sample_size // 2 ** (self.levels - 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> ClassifierConfig:
        """As ``Config.from_dict``, for a file whose ``_class_name`` is Classifier."""
        name = values.get("_class_name", "Classifier")
        check_choice(f"{source}: _class_name", name, ("Classifier",))
        return super().from_dict(values, source)
