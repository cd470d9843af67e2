"""Configurations of the modules: dataclasses read from and written as a diffusers folder's JSON.

A key that we do not implement is accepted only at the value that switches it off (``NEUTRAL``);
any other value would change the picture, so it is an error that names the key.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ldm.errors import CheckpointError

C = TypeVar("C", bound="Config")


SCALARS = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}
LARGEST = 1 << 20  # of a number in a config: larger ones would take all memory
DEEPEST = 100  # of a number of layers or levels
MOST_TIMESTEPS = 100_000
DEPTHS = frozenset(
    "layers_per_block transformer_layers_per_block num_hidden_layers block_out_channels".split()
)


@dataclass(frozen=True)
class Config:
    """Base: ``from_dict`` / ``from_file`` read diffusers' JSON, ``to_dict`` writes it."""

    # Keys that cannot change what the module computes.
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    # Keys that we do not implement, with the values that switch them off.
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}
    # Written beside the fields, for diffusers and transformers.
    EXTRA: ClassVar[dict[str, Any]] = {}

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any], source: str = "config") -> C:
        """Read a JSON object. Raises CheckpointError for a key that we cannot honour."""
        known = {field.name: field.type for field in fields(cls)}
        kept: dict[str, Any] = {}
        for key, value in values.items():
            if key in known:
                if not (fits(value, known[key]) and (key not in DEPTHS or shallow(value))):
                    raise CheckpointError(f"{source}: {key} is {value!r}, which is not supported")
                kept[key] = tuple(value) if isinstance(value, list) else value
            elif not key.startswith("_") and key not in cls.IGNORED:
                neutral = cls.NEUTRAL.get(key, (None, False))
                if value not in neutral:
                    raise CheckpointError(
                        f"{source}: {key} is {value!r}, which is not supported; "
                        f"only {' or '.join(map(repr, neutral))} works"
                    )
        try:
            return cls(**kept)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        except (TypeError, ZeroDivisionError) as error:
            raise CheckpointError(f"{source}: a value has the wrong type ({error})") from error

    @classmethod
    def from_file(cls: type[C], path: str | Path) -> C:
        """Read a ``config.json``. Raises CheckpointError as ``read_json`` and ``from_dict`` do."""
        return cls.from_dict(read_json(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that diffusers (or transformers) reads back."""
        return {**self.EXTRA, **asdict(self)}


def fits(value: object, annotation: str) -> bool:
    """Whether a JSON value is of a field's type, such as "int | tuple[int, ...] | None".

    Numbers must be finite, in [0, LARGEST] where they are whole.
    """
    for kind in annotation.split(" | "):
        if kind.startswith("tuple["):
            inner = kind.removeprefix("tuple[").split(",")[0]
            if isinstance(value, list | tuple) and all(fits(item, inner) for item in value):
                return True
        elif isinstance(value, SCALARS[kind]) and isinstance(value, bool) == (kind == "bool"):
            return (
                not isinstance(value, int | float)
                or (kind == "int" and 0 <= value <= LARGEST)
                or (kind != "int" and math.isfinite(value))
            )
    return False


def shallow(value: int | tuple[int, ...] | list[int]) -> bool:
    """Whether numbers of layers, or a list with one value for each level, could be a network's."""
    if isinstance(value, int):
        return 1 <= value <= DEEPEST
    return 1 <= len(value) <= DEEPEST


def read_json(path: str | Path, optional: bool = False) -> dict[str, Any]:
    """Read a file that holds one JSON object; {} where an ``optional`` one does not exist.

    Raises CheckpointError for a file that is missing, unreadable, or not a JSON object.
    """
    path = Path(path)
    if optional and not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; a model folder needs it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise CheckpointError(
            f"cannot read {path} as JSON ({error}); download the model again"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    """Write a JSON object whole or not at all, and the folder it is in. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def per_level(value: int | tuple[int, ...], levels: int, name: str) -> tuple[int, ...]:
    """One value per resolution level: a single one is repeated, else there must be one for each."""
    values = (value,) * levels if isinstance(value, int) else tuple(value)
    if len(values) != levels:
        raise CheckpointError(
            f"{name} has {len(values)} values for {levels} levels of block_out_channels"
        )
    return values


def check_groups(channels: tuple[int, ...], groups: int, name: str = "norm_num_groups") -> None:
    """Group normalisation needs channel counts that its groups divide."""
    for count in channels:
        if groups < 1 or count < 1 or count % groups:
            raise CheckpointError(
                f"block_out_channels holds {count}, which {name} {groups} does not divide"
            )


def check_choice(name: str, value: object, choices: str, none: bool = False) -> None:
    """Raise CheckpointError unless a value is one of the words, or None where that is one."""
    if value not in choices.split() and not (none and value is None):
        words = " or ".join(map(repr, choices.split()))
        raise CheckpointError(f"{name} is {value!r}; expected {words}{' or none' * none}")


def check_blocks(name: str, found: tuple[str, ...], kinds: tuple[str, ...], levels: int) -> None:
    """Raise CheckpointError unless there is one block for each level, of these kinds."""
    if len(found) != levels:
        raise CheckpointError(
            f"{name} has {len(found)} blocks for {levels} levels of block_out_channels"
        )
    way = name.partition("_")[0].capitalize()
    for kind in found:
        check_choice(f"{name}: a block", kind, " ".join(kinds).format(*[way] * len(kinds)))


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


@dataclass(frozen=True)
class CLIPTextConfig(Config):
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
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        "model_type bos_token_id pad_token_id dtype torch_dtype transformers_version "
        "initializer_factor initializer_range attention_dropout dropout".split()
    )

    def __post_init__(self) -> None:
        if self.hidden_act not in ("quick_gelu", "gelu"):
            raise CheckpointError(
                f"hidden_act is {self.hidden_act!r}; expected 'quick_gelu' or 'gelu'"
            )
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"hidden_size {self.hidden_size} is not divisible by "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> CLIPTextConfig:
        """As ``Config.from_dict``, without the generation settings that old transformers wrote."""
        known = {field.name for field in fields(cls)} | cls.IGNORED
        return super().from_dict(
            {k: v for k, v in values.items() if k in known and v is not None}, source
        )


# Kinds of block, with attention to a text and without; "{}" is "Down" or "Up".
TEXT_BLOCKS = ("{}Block2D", "CrossAttn{}Block2D")
PLAIN_BLOCKS = ("{}Block2D", "Attn{}Block2D", "Resnet{}sampleBlock2D")


@dataclass(frozen=True)
class BlocksConfig(Config):
    """What the levels of U-Nets and of classifiers are made of: see ``ldm.unet_blocks``."""

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
        check_choice("resnet_time_scale_shift", self.resnet_time_scale_shift, "default scale_shift")
        check_choice("downsample_type", self.downsample_type, "conv resnet")
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
                and (not isinstance(size, int) or not 0 < size or channels % size)
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
    # Classes that the model is told; with guidance the last one is "no class".
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

    TEXT_ONLY: ClassVar[tuple[str, ...]] = tuple(
        "transformer_layers_per_block num_attention_heads use_linear_projection "
        "addition_embed_type addition_time_embed_dim projection_class_embeddings_input_dim "
        "time_cond_proj_dim".split()
    )
    PLAIN_ONLY: ClassVar[tuple[str, ...]] = tuple(
        "downsample_type upsample_type add_attention attn_norm_num_groups".split()
    )
    # What a UNet2DModel's JSON means by leaving them out, where it is not the same.
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
        check_choice("upsample_type", self.upsample_type, "conv resnet")
        if self.num_class_embeds is not None and self.num_class_embeds < 1:
            raise CheckpointError("num_class_embeds is 0; expected 1 or more, or none")
        check_choice("class_embed_type", self.class_embed_type, "timestep identity", none=True)
        per_level(self.transformer_layers_per_block, self.levels, "transformer_layers_per_block")
        check_choice("addition_embed_type", self.addition_embed_type, "text_time", none=True)
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
        check_choice(f"{source}: _class_name", name, "UNet2DConditionModel UNet2DModel")
        if name == "UNet2DModel":
            values = cls.PLAIN | values
            middle = values.pop("mid_block_type", "UNetMidBlock2D")
            check_choice(f"{source}: mid_block_type", middle, "UNetMidBlock2D")
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
        """Whether the model is told a class."""
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
        return per_level(value, len(self.block_out_channels), "attention_head_dim")

    @property
    def depth(self) -> tuple[int, ...]:
        """Transformer blocks in each spatial transformer, per level, finest first."""
        levels = len(self.block_out_channels)
        return per_level(self.transformer_layers_per_block, levels, "transformer_layers_per_block")

    def time_ids(self, pooled: int) -> int:
        """How many sizes in pixels SDXL's U-Net reads beside a text of width ``pooled``: 5 or 6."""
        if self.addition_embed_type is None:
            return 0
        width = self.projection_class_embeddings_input_dim - pooled
        count, rest = divmod(width, self.addition_time_embed_dim)
        if rest or count not in (5, 6):
            raise CheckpointError(
                f"projection_class_embeddings_input_dim leaves {width} for sizes in pixels; "
                f"expected 5 or 6 times {self.addition_time_embed_dim}"
            )
        return count


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
        """As ``Config.from_dict``, for a file that says it is of a Classifier."""
        name = values.get("_class_name", "Classifier")
        check_choice(f"{source}: _class_name", name, "Classifier")
        return super().from_dict(values, source)


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """``scheduler_config.json``: the noise schedule, and the sampler that the author chose."""

    sampler_class: str = "DDPMScheduler"  # "_class_name" in the file
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"  # or "scaled_linear" (SD) …: see ldm.scheduler.betas
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"  # or "sample" (x₀), "v_prediction", "mean" (ours)
    clip_sample: bool = True  # clamp x̂₀ to ±clip_sample_range
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True  # ᾱ before step 0: 1, else ᾱ₀
    steps_offset: int = 0
    timestep_spacing: str | None = None  # None: as the class does it
    rescale_betas_zero_snr: bool = False
    variance_type: str | None = "fixed_small"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    final_sigmas_type: str = "zero"
    algorithm_type: str = "dpmsolver++"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    skip_prk_steps: bool = False
    thresholding: bool = False
    original_inference_steps: int = 50  # of LCM: the timesteps that it was distilled on

    # Used only with thresholding, by a class that is not the file's own, or by flow models.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        "dynamic_thresholding_ratio sample_max_value flow_shift time_shift_type "
        "use_dynamic_shifting".split()
    )
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "timestep_scaling": (10.0,),
        "lambda_min_clipped": (-math.inf,),
        "predict_x0": (True,),
        "disable_corrector": ([],),
    }

    def __post_init__(self) -> None:
        if not 1 <= self.num_train_timesteps <= MOST_TIMESTEPS:
            raise CheckpointError(
                f"num_train_timesteps is {self.num_train_timesteps}; expected 1 to {MOST_TIMESTEPS}"
            )
        for name in ("beta_start", "beta_end"):
            if not 0 <= getattr(self, name) < 1:
                raise CheckpointError(f"{name} is {getattr(self, name)}; expected [0, 1)")

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> SchedulerConfig:
        """As ``Config.from_dict``, with ``_class_name`` kept as ``sampler_class``."""
        values = dict(values)
        if "_class_name" in values:
            values["sampler_class"] = values.pop("_class_name")
        if values.get("sampler_class") == "PNDMScheduler":  # these have other defaults
            values.setdefault("set_alpha_to_one", False)
        if values.get("sampler_class") == "HeunDiscreteScheduler":
            values.setdefault("clip_sample", False)
        return super().from_dict(values, source)

    def to_dict(self) -> dict[str, Any]:
        values = {"_class_name": self.sampler_class, **super().to_dict()}
        del values["sampler_class"]
        names = {"quadratic": "scaled_linear", "exponential": "exp"}  # as diffusers calls them
        values["beta_schedule"] = names.get(self.beta_schedule, self.beta_schedule)
        if self.timestep_spacing is None:  # diffusers takes a missing key, but not null
            del values["timestep_spacing"]
        return values
