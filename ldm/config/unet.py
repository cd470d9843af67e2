"""The configuration of the U-Net, and of the blocks that it shares with classifiers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ldm.config.base import Config, check_choice, check_groups, per_level
from ldm.errors import CheckpointError

# Kinds of block, with attention to a text and without; "{}" is "Down" or "Up".
TEXT_BLOCKS = ("{}Block2D", "CrossAttn{}Block2D")
PLAIN_BLOCKS = ("{}Block2D", "Attn{}Block2D", "Resnet{}sampleBlock2D")


@dataclass(frozen=True)
class BlocksConfig(Config):
    """What the levels of U-Nets and of classifiers are made of: see ``ldm.unet``."""

    in_channels: int = 3
    center_input_sample: bool = False  # pixels come in [0, 1]: the network moves them to [-1, 1]
    flip_sin_to_cos: bool = True  # order of the halves of the time embedding
    freq_shift: float = 0
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)  # one level each, /2 between levels
    layers_per_block: int = 2
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    downsample_type: str = "conv"  # of AttnDownBlock2D; "resnet": by a residual block
    downsample_padding: int = 1  # of the convolution; 0: right and below only
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"  # "scale_shift": adaptive group normalisation
    dropout: float = 0.0  # in the residual blocks, in training
    attention_head_dim: int | tuple[int, ...] | None = 8  # channels per head; None: one head
    add_attention: bool = True  # in the middle
    # Of the attention there; None: norm_num_groups, or with "scale_shift" no normalisation.
    attn_norm_num_groups: int | None = None

    EXTRA: ClassVar[dict[str, Any]] = {"act_fn": "silu"}
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "act_fn": ("silu", "swish"),
        "mid_block_scale_factor": (1,),
        "time_embedding_type": ("positional",),
    }

    def __post_init__(self) -> None:
        check_groups(self.block_out_channels, self.norm_num_groups)
        if self.attn_norm_num_groups is not None:
            check_groups(
                self.block_out_channels[-1:], self.attn_norm_num_groups, "attn_norm_num_groups"
            )
        check_choice(
            "resnet_time_scale_shift", self.resnet_time_scale_shift, ("default", "scale_shift")
        )
        check_choice("downsample_type", self.downsample_type, ("conv", "resnet"))
        if self.downsample_padding not in (0, 1):
            raise CheckpointError(f"downsample_padding is {self.downsample_padding}; expected 0, 1")
        if not 0 <= self.dropout < 1:
            raise CheckpointError(f"dropout is {self.dropout}; expected [0, 1)")
        self.check_blocks()
        self.check_heads()

    def check_blocks(self) -> None:
        """Raise CheckpointError unless each level has its block, of a kind that there is."""
        check_blocks("down_block_types", self.down_block_types, PLAIN_BLOCKS, self.levels)

    def check_heads(self) -> None:
        """Raise CheckpointError unless heads divide the channels wherever there is attention."""
        size = self.attention_head_dim
        for channels, attends in zip(self.block_out_channels, self.attending, strict=True):
            if (
                attends
                and size is not None
                and (not isinstance(size, int) or size <= 0 or channels % size)
            ):
                raise CheckpointError(
                    f"{channels} channels cannot be split into attention heads of "
                    f"attention_head_dim {size}"
                )

    @property
    def levels(self) -> int:
        """How many resolutions there are."""
        return len(self.block_out_channels)

    @property
    def attending(self) -> list[bool]:
        """Which levels have attention, finest first; the middle counts with the last."""
        attending = ["Attn" in kind for kind in self.down_block_types]
        return [*attending[:-1], attending[-1] or self.add_attention]

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level, finest first."""
        size = self.attention_head_dim
        assert not isinstance(size, tuple)  # see check_heads
        return tuple(1 if size is None else width // size for width in self.block_out_channels)


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
    transformer_layers_per_block: int | tuple[int, ...] = 1
    num_attention_heads: int | tuple[int, ...] | None = None  # overrides it where given
    use_linear_projection: bool = False  # SD 2.x, SDXL: proj_in/out linear, not 1×1 convolutions
    # SDXL: "text_time" adds the pooled text and sizes in pixels to the time embedding.
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None  # width of each size's sinusoidal embedding
    projection_class_embeddings_input_dim: int | None = None  # of the pooled text and all sizes
    time_cond_proj_dim: int | None = None  # LCM: width of the guidance scale's embedding

    TEXT_ONLY: ClassVar[tuple[str, ...]] = (
        "transformer_layers_per_block",
        "num_attention_heads",
        "use_linear_projection",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "time_cond_proj_dim",
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
    IGNORED: ClassVar[frozenset[str]] = frozenset({"upcast_attention", "num_train_timesteps"})
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = BlocksConfig.NEUTRAL | {
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
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
        per_level(self.transformer_layers_per_block, self.levels, "transformer_layers_per_block")
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
    def depth(self) -> tuple[int, ...]:
        """Transformer blocks in each spatial transformer, per level, finest first."""
        levels = len(self.block_out_channels)
        return per_level(self.transformer_layers_per_block, levels, "transformer_layers_per_block")

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


def check_blocks(name: str, found: tuple[str, ...], kinds: tuple[str, ...], levels: int) -> None:
    """Raise CheckpointError unless there is one block for each level, of these kinds."""
    if len(found) != levels:
        raise CheckpointError(
            f"{name} has {len(found)} blocks for {levels} levels of block_out_channels"
        )
    way = name.partition("_")[0].capitalize()
    for kind in found:
        check_choice(f"{name}: a block", kind, [one.format(way) for one in kinds])
