"""What CLIP's two encoders have in common, and the configuration of the text encoder."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from ldm.config.base import Config, check_choice
from ldm.errors import CheckpointError

C = TypeVar("C", bound="CLIPConfig")


class CLIPConfig(Config):
    """The transformer layers that the text encoder and the vision encoder share.

    Subclasses define the fields, each in the order of its JSON.
    """

    hidden_size: int
    intermediate_size: int
    projection_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    architectures: tuple[str, ...]

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "model_type",
            "bos_token_id",
            "pad_token_id",
            "dtype",
            "torch_dtype",
            "transformers_version",
            "initializer_factor",
            "initializer_range",
            "attention_dropout",
            "dropout",
        }
    )

    def __post_init__(self) -> None:
        check_choice("hidden_act", self.hidden_act, ("quick_gelu", "gelu"))
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any], source: str = "config") -> C:
        """As ``Config.from_dict``, without the generation settings that old transformers wrote."""
        known = {field.name for field in fields(cls)} | cls.IGNORED
        return super().from_dict(
            {k: v for k, v in values.items() if k in known and v is not None}, source
        )


@dataclass(frozen=True)
class CLIPTextConfig(CLIPConfig):
    """``CLIPTextModel``: transformers' defaults (CLIP ViT-B/32's text side)."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    # "CLIPTextModel" has no text_projection, "CLIPTextModelWithProjection" has one.
    architectures: tuple[str, ...] = ("CLIPTextModel",)

    EXTRA: ClassVar[dict[str, Any]] = {
        "model_type": "clip_text_model",
        "bos_token_id": 49406,
        "pad_token_id": 1,
    }
