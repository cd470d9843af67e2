"""The configuration of CLIP's vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ldm.config.clip import CLIPConfig
from ldm.errors import CheckpointError

CLASS = "CLIPVisionModelWithProjection"  # transformers' class for it


@dataclass(frozen=True)
class CLIPVisionConfig(CLIPConfig):
    """``CLIPVisionModelWithProjection``: transformers' defaults (CLIP ViT-B/32's vision side)."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224  # pixels along a side
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    architectures: tuple[str, ...] = (CLASS,)

    EXTRA: ClassVar[dict[str, Any]] = {"model_type": "clip_vision_model"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.patch_size <= self.image_size:
            raise CheckpointError(
                f"patch_size is {self.patch_size} and image_size {self.image_size}; expected at "
                "least one patch in a picture"
            )
        if self.num_channels != 3:
            raise CheckpointError(f"num_channels is {self.num_channels}; expected 3, of RGB")

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> CLIPVisionConfig:
        """As ``Config.from_dict``; of a whole CLIP's (``CLIPConfig``), the vision side's alone."""
        inner = values.get("vision_config")
        if isinstance(inner, dict):
            width = values.get("projection_dim", cls.projection_dim)
            values = inner | {"projection_dim": width, "architectures": [CLASS]}
        return super().from_dict(values, source)

    @property
    def tokens(self) -> int:
        """The states of a picture: one for each patch, and one for all."""
        return (self.image_size // self.patch_size) ** 2 + 1
