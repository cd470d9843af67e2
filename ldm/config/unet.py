"""The configuration of the U-Net."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ldm.config.base import check_choice, per_level
from ldm.config.blocks import MOST_LAYERS, PLAIN_BLOCKS, BlocksConfig, check_blocks, check_total
from ldm.errors import CheckpointError

# Kinds of block with attention to a text; "{}" is "Down" or "Up".
TEXT_BLOCKS = ("{}Block2D", "CrossAttn{}Block2D")
# The middle of U-Nets with a text: with attention to it, one residual block alone, or none.
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)

Depths = tuple[int | tuple[int, ...], ...]  # of each level; a list has one for each of its layers


@dataclass(frozen=True)
class UNetConfig(BlocksConfig):
    """``UNet2DConditionModel``: SD 1.x by default; without ``cross_attention_dim`` ``UNet2DModel``.

    The two have keys of their own (``TEXT_ONLY``, ``PLAIN_ONLY``), and in JSON other defaults.
    """

    sample_size: int | None = 64  # latents, or pixels, along a side in training
    in_channels: int = 4
    out_channels: int = 4  # twice as many as come in, where it also predicts the variance
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    upsample_type: str = "conv"  # of AttnUpBlock2D; "resnet": by a residual block
    # With a text, the NUMBER of heads, by a misnomer of diffusers.
    attention_head_dim: int | tuple[int, ...] | None = 8
    # Classes that the model is conditioned on; with guidance the last one is "no class".
    num_class_embeds: int | None = None
    class_embed_type: str | None = None  # "timestep": a number instead; "identity": an embedding
    cross_attention_dim: int | None = 768  # width of the text's states; None: no text
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"  # distilled ones have less there
    transformer_layers_per_block: int | Depths = 1
    # On the way up, coarsest first; None: as on the way down.
    reverse_transformer_layers_per_block: Depths | None = None
    only_cross_attention: bool | tuple[bool, ...] = False  # both attentions look at the text
    num_attention_heads: int | tuple[int, ...] | None = None  # overrides it where given
    use_linear_projection: bool = False  # SD 2.x, SDXL: proj_in/out linear, not 1×1 convolutions
    # SDXL: "text_time" adds the pooled text and sizes in pixels to the time embedding.
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None  # width of each size's sinusoidal embedding
    projection_class_embeddings_input_dim: int | None = None  # of the pooled text and all sizes
    time_cond_proj_dim: int | None = None  # LCM: width of the guidance scale's embedding

    TEXT_ONLY: ClassVar[tuple[str, ...]] = (
        "mid_block_type",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "only_cross_attention",
        "num_attention_heads",
        "use_linear_projection",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "time_cond_proj_dim",
    )
    # Written if they are not the default.
    DISTILLED_ONLY: ClassVar[tuple[str, ...]] = (
        "mid_block_type",
        "reverse_transformer_layers_per_block",
        "only_cross_attention",
    )
    PLAIN_ONLY: ClassVar[tuple[str, ...]] = (
        "downsample_type",
        "upsample_type",
        "add_attention",
        "attn_norm_num_groups",
    )
    # What missing keys mean in a UNet2DModel's JSON, if it differs.
    PLAIN: ClassVar[dict[str, Any]] = {
        "cross_attention_dim": None,
        "sample_size": None,
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
        "up_block_types": ("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
        "block_out_channels": (224, 448, 672, 896),
    }
    # Precision of the attention; ours is as the processor does it best. Range of learned times.
    # A key of a kind of middle that is not among MID_BLOCKS.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"upcast_attention", "num_train_timesteps", "mid_block_only_cross_attention"}
    )
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = BlocksConfig.NEUTRAL | {
        "resnet_out_scale_factor": (1.0,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "addition_embed_type_num_heads": (64,),  # diffusers' default, without effect on its own
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        foreign = self.TEXT_ONLY if self.cross_attention_dim is None else self.PLAIN_ONLY
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in foreign and value != field.default:
                raise CheckpointError(
                    f"{field.name} is {value!r}, but a {self.class_name} has no such key"
                )
        check_choice("upsample_type", self.upsample_type, ("conv", "resnet"))
        if self.num_class_embeds is not None and self.num_class_embeds < 1:
            raise CheckpointError("num_class_embeds is 0; expected 1 or more, or none")
        check_choice("class_embed_type", self.class_embed_type, ("timestep", "identity", None))
        self.check_depths()
        check_choice("addition_embed_type", self.addition_embed_type, ("text_time", None))
        sizes = (self.addition_time_embed_dim, self.projection_class_embeddings_input_dim)
        if self.addition_embed_type and None in sizes:
            raise CheckpointError(
                "addition_embed_type 'text_time' needs addition_time_embed_dim and "
                "projection_class_embeddings_input_dim"
            )

    def check_blocks(self) -> None:
        kinds = PLAIN_BLOCKS if self.cross_attention_dim is None else TEXT_BLOCKS
        for name in ("down_block_types", "up_block_types"):
            check_blocks(name, getattr(self, name), kinds, self.levels)

    def check_depths(self) -> None:
        """Raise CheckpointError unless the depths, the middle and the layers go together."""
        check_choice("mid_block_type", self.mid_block_type, MID_BLOCKS)
        per_level(self.only_cross_attention, self.levels, "only_cross_attention")
        name = "transformer_layers_per_block"
        depths, up = self.transformer_layers_per_block, self.reverse_transformer_layers_per_block
        per_level(depths, self.levels, name)
        if up is None:
            if not isinstance(depths, int) and not all(isinstance(one, int) for one in depths):
                raise CheckpointError(
                    f"{name} is {depths}, with a list; reverse_{name}, of the way up, is missing"
                )
        else:
            per_level(up, self.levels, f"reverse_{name}")
        for depth in (*self.down_depths, *self.up_depths, (self.mid_depth,)):
            if not all(0 <= one <= MOST_LAYERS for one in depth):
                raise CheckpointError(
                    f"{name} holds {depth}; expected 0 to {MOST_LAYERS} for each layer"
                )
        check_total(name, sum(map(sum, (*self.down_depths, *self.up_depths))) + self.mid_depth)
        if self.cross_attention_dim is None and not isinstance(self.layers_per_block, int):
            raise CheckpointError(
                f"layers_per_block is {self.layers_per_block}; a {self.class_name} has one number"
            )

    def check_heads(self) -> None:
        if self.cross_attention_dim is None:
            return super().check_heads()
        for channels, heads in zip(self.block_out_channels, self.heads, strict=True):
            if heads < 1 or channels % heads:
                raise CheckpointError(
                    f"{channels} channels cannot be split into {heads} attention heads"
                )

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> UNetConfig:
        """As ``Config.from_dict``, for both of diffusers' classes, by ``_class_name``."""
        name = values.get("_class_name", "UNet2DConditionModel")
        check_choice(f"{source}: _class_name", name, ("UNet2DConditionModel", "UNet2DModel"))
        if name == "UNet2DModel":
            values = cls.PLAIN | values
            middle = values.pop("mid_block_type", "UNetMidBlock2D")
            check_choice(f"{source}: mid_block_type", middle, ("UNetMidBlock2D",))
        width = values.get("cross_attention_dim", cls.cross_attention_dim)
        if (width is None) != (name == "UNet2DModel"):
            raise CheckpointError(
                f"{source}: cross_attention_dim is {width}, which does not go with "
                f"_class_name {name!r}"
            )
        return super().from_dict(values, source)

    def to_dict(self) -> dict[str, Any]:
        values = {"_class_name": self.class_name, **super().to_dict()}
        plain = self.cross_attention_dim is None
        for name in (*self.TEXT_ONLY, "cross_attention_dim") if plain else self.PLAIN_ONLY:
            del values[name]
        for name in () if plain else self.DISTILLED_ONLY:
            if values[name] == getattr(type(self), name):
                del values[name]
        return values

    @property
    def class_conditional(self) -> bool:
        """Whether the model is conditioned on a class."""
        return self.num_class_embeds is not None or self.class_embed_type is not None

    @property
    def class_name(self) -> str:
        """diffusers' class for it."""
        return "UNet2DModel" if self.cross_attention_dim is None else "UNet2DConditionModel"

    @property
    def attending(self) -> list[bool]:
        """Which levels have attention on either way, finest first; the middle with the last."""
        pairs = zip(super().attending, self.up_block_types[::-1], strict=True)
        return [down or "Attn" in up for down, up in pairs]

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level, finest first."""
        if self.cross_attention_dim is None:
            return super().heads
        value = (
            self.attention_head_dim
            if self.num_attention_heads is None
            else self.num_attention_heads
        )
        if value is None:
            raise CheckpointError("attention_head_dim is None; expected a number of heads")
        return per_level(value, len(self.block_out_channels), "attention_head_dim")

    @property
    def down_depths(self) -> tuple[tuple[int, ...], ...]:
        """Transformer blocks in each spatial transformer on the way down, finest level first.

        Levels without attention have ().
        """
        depths = per_level(
            self.transformer_layers_per_block, self.levels, "transformer_layers_per_block"
        )
        return tuple(
            per_layer(depth, layers) if "Attn" in kind else ()
            for depth, layers, kind in zip(depths, self.layers, self.down_block_types, strict=True)
        )

    @property
    def mid_depth(self) -> int:
        """Transformer blocks in the middle."""
        depths = self.transformer_layers_per_block
        last = depths if isinstance(depths, int) else depths[-1]
        return per_layer(last, 1)[0]

    @property
    def up_depths(self) -> tuple[tuple[int, ...], ...]:
        """As ``down_depths``, of the way up; coarsest level first."""
        depths = self.reverse_transformer_layers_per_block
        if depths is None:
            name = "transformer_layers_per_block"
            depths = per_level(self.transformer_layers_per_block, self.levels, name)[::-1]
        return tuple(
            per_layer(depth, layers + 1) if "Attn" in kind else ()
            for depth, layers, kind in zip(
                depths, self.layers[::-1], self.up_block_types, strict=True
            )
        )

    @property
    def crossing(self) -> tuple[bool, ...]:
        """Whether both attentions of a level look at the text, finest first."""
        values = per_level(self.only_cross_attention, self.levels, "only_cross_attention")
        return tuple(map(bool, values))

    def time_ids(self, pooled: int) -> int:
        """Return how many sizes in pixels SDXL's U-Net reads beside a text of width ``pooled``."""
        if self.addition_embed_type is None:
            return 0
        total, each = self.projection_class_embeddings_input_dim, self.addition_time_embed_dim
        assert total is not None and each is not None  # see __post_init__
        width = total - pooled
        count, rest = divmod(width, each)
        if rest or count not in (5, 6):
            raise CheckpointError(
                f"projection_class_embeddings_input_dim leaves {width} for sizes in pixels; "
                f"expected 5 or 6 times {each}"
            )
        return count


def per_layer(depth: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Return one depth for each layer of a block; a single one is repeated, others are left out.

    Raises CheckpointError for a list that is too short.
    """
    values = (depth,) * layers if isinstance(depth, int) else depth[:layers]
    if len(values) < layers:
        raise CheckpointError(
            f"transformer_layers_per_block holds {depth} for a block of {layers} layers"
        )
    return values
