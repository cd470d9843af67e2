"""How much memory a run needs: the weights, and what each part of it holds at its peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ldm.config import CLIPTextConfig, TAESDConfig, UNetConfig, VAEConfig
from ldm.memory import networks
from ldm.memory.layers import Kernels
from ldm.memory.system import gigabytes

LIBRARIES = 14 << 20  # bytes of kernels that are made at the first call, and their buffers
STATES = 12  # tensors like x that samplers and guidance hold, float32
ENGINE = 1.1  # of the weights: what OpenVINO packs of them for one size of pictures
PIXELS = 4  # bytes of a value of a picture, float32


@dataclass(frozen=True)
class Networks:
    """The networks of a model, and how they compute.

    Attributes:
        codec: of the VAE; None for a model of pixels.
        weights: bytes of each part, in the dtype that it computes in.
        loaded: whether they are in memory already.
        itemsize, codec_itemsize: bytes of a value in the U-Net, and in the VAE.
        optimized, int8, fp8, offload, engine: as ``Pipeline.optimize`` has it.
        device: "cpu" or "cuda".
        by_blocks: bytes of the weights that are on the GPU with ``offload="sequential"``.
        int8_weights: whether ``offload`` brings weights in 8 bits.
        in_8_bits: bytes of the parts that it then brings so.
    """

    unet: UNetConfig
    codec: VAEConfig | TAESDConfig | None
    texts: tuple[CLIPTextConfig, ...]
    weights: Mapping[str, int]
    loaded: bool
    itemsize: int
    codec_itemsize: int
    optimized: bool = False
    int8: bool = False
    offload: bool | Literal["sequential"] = False
    device: str = "cpu"
    by_blocks: int = 0
    fp8: bool = False
    engine: bool = False
    int8_weights: bool = False
    in_8_bits: Mapping[str, int] = field(default_factory=dict)

    @property
    def brought(self) -> Mapping[str, int]:
        """Bytes of each part on the GPU where ``offload`` brings it as a whole."""
        return {**self.weights, **self.in_8_bits} if self.int8_weights else self.weights

    @property
    def scale(self) -> int:
        """Pixels per latent along each side."""
        return 1 if self.codec is None else self.codec.scale


@dataclass(frozen=True)
class Drawing:
    """What is drawn at once.

    Attributes:
        height, width: in pixels. count: of pictures.
        rows: of a U-Net call for each picture: 2 with guidance by one text.
        image: whether a picture is read and encoded. controlnets: how many steer.
        reference: whether each row has one of a reference picture beside it.
        decode: whether pictures come out, not latents.
        together: whether all rows are computed in one call, as with DeepCache.
    """

    height: int
    width: int
    count: int = 1
    rows: int = 2
    image: bool = False
    controlnets: int = 0
    reference: bool = False
    decode: bool = True
    together: bool = False


def in_one_call(style_aligned: bool, deep_cache: int, deep_cache_branch: int = 0) -> bool:
    """Whether these arguments of a request have all rows computed in one U-Net call.

    DeepCache keeps what it computed from call to call; with a shared style rows read each other.
    """
    return style_aligned or (deep_cache, deep_cache_branch) != (1, 0)


@dataclass(frozen=True)
class MemoryNeeded:
    """Bytes that a run needs at its peak, by what they are for.

    The C library may take more where there is enough: see ``ldm.memory.thrift``.

    Attributes:
        weights: of all parts; with ``offload``, of the largest one, or of blocks, on the GPU.
        text, encoding, denoising, decoding: tensors beside the weights, each at its own peak.
        available: what this process may still take; None if that is not known.
        loaded: the part of ``weights`` that is in memory already.
        apart: with ``offload``, the weights on the GPU at each of the moments above.
    """

    weights: int
    text: int
    encoding: int
    denoising: int
    decoding: int
    available: int | None = None
    loaded: int = 0
    apart: Mapping[str, int] = field(default_factory=dict)

    @property
    def activations(self) -> int:
        """Bytes beside the weights, at most."""
        return max(self.text, self.encoding, self.denoising, self.decoding)

    @property
    def peak(self) -> int:
        """Bytes at most."""
        if self.apart:
            return max(size + getattr(self, moment) for moment, size in self.apart.items())
        return self.weights + self.activations

    @property
    def missing(self) -> int:
        """Bytes of the peak that are still to be taken."""
        return self.peak - self.loaded

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "text": self.text,
            "encoding the image": self.encoding,
            "denoising": self.denoising,
            "decoding": self.decoding,
        }
        listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if size)
        there = "" if self.available is None else f"; {gigabytes(self.available)} available"
        return f"{gigabytes(self.peak)} at the peak ({listed}){there}"


def estimate(model: Networks, drawing: Drawing, available: int | None = None) -> MemoryNeeded:
    """Count what a run needs."""
    height, width = drawing.height // model.scale, drawing.width // model.scale
    latents = PIXELS * (model.unet.out_channels * height * width) * drawing.count
    pictures = PIXELS * 3 * drawing.height * drawing.width * drawing.count
    on_cpu = model.device == "cpu"
    weights = sum(model.weights.values())
    if model.offload == "sequential":
        weights = model.by_blocks
    elif model.offload:
        weights = max(model.brought.values(), default=0)
    if model.int8:
        weights += networks.int8_weights(model.unet)
    if model.fp8:
        weights += networks.fp8_weights(model.unet)
    if model.engine:
        weights += int(ENGINE * sum(model.weights.values()))
    loaded = sum(model.weights.values()) if model.loaded and not model.offload else 0
    read = pictures if drawing.image and on_cpu else 0
    apart = weights_apart(model.brought) if model.offload is True else {}
    beside = 0 if model.loaded else apart.get("decoding", weights)
    left = None if available is None else available - beside
    return MemoryNeeded(
        weights,
        text_bytes(model, drawing),
        read + encode_bytes(model, drawing) if drawing.image or drawing.reference else 0,
        LIBRARIES + read + STATES * latents + denoise_bytes(model, drawing, height, width),
        LIBRARIES + read + 4 * latents + decode_bytes(model, drawing, pictures, left),
        available,
        loaded,
        apart,
    )


def weights_apart(weights: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of the part on the GPU at each moment, as ``offload`` has one at a time."""
    moments = {"text": 0, "encoding": 0, "denoising": 0, "decoding": weights.get("vae", 0)}
    moments["encoding"] = moments["decoding"]
    for name, size in weights.items():
        if name != "vae":
            moment = "text" if name.startswith("text_encoder") else "denoising"
            moments[moment] = max(moments[moment], size)
    return moments


def text_bytes(model: Networks, drawing: Drawing) -> int:
    """Count what encoding all texts takes."""
    each = max((networks.text_encoder(config) for config in model.texts), default=0)
    return int(each * drawing.rows * drawing.count * model.itemsize)


def encode_bytes(model: Networks, drawing: Drawing) -> int:
    """Count what encoding an image takes: one after the other."""
    pixels = drawing.height * drawing.width
    kernels = Kernels(model.codec_itemsize, model.optimized)
    if isinstance(model.codec, VAEConfig):
        return int(networks.encode(model.codec, pixels, kernels) * kernels.itemsize)
    if model.codec is not None:
        return int(networks.tiny_coder(model.codec, pixels, kernels) * kernels.itemsize)
    return 0


def denoise_bytes(model: Networks, drawing: Drawing, height: int, width: int) -> int:
    """Count what a step takes; height, width: of the latents."""
    kernels = Kernels(model.itemsize, model.optimized, model.int8)
    rows = drawing.rows * drawing.count * (2 if drawing.reference else 1)
    if model.device == "cpu" and not (model.engine or drawing.reference or drawing.together):
        rows = min(rows, networks.rows_at_once(height, width))
    steered = drawing.controlnets > 0
    values = networks.unet_call(model.unet, height, width, kernels, steered)
    if steered:
        uses = drawing.controlnets
        plain = Kernels(model.itemsize, model.optimized)
        control = networks.controlnet_call(model.unet, height, width, plain, uses)
        values = max(values, control)
    if model.optimized:
        values += networks.text_keys(model.unet)
    return int(values * rows * model.itemsize)


def decode_bytes(model: Networks, drawing: Drawing, pictures: int, available: int | None) -> int:
    """Count what decoding takes, one picture at a time, with the finished ones.

    pictures: bytes of all as float32.
    """
    if not drawing.decode:
        return 0
    pixels = drawing.height * drawing.width
    kernels = Kernels(model.codec_itemsize, model.optimized)
    one = 0.0
    if isinstance(model.codec, VAEConfig):
        small = pixels // model.codec.scale**2
        layer = networks.widest(model.codec, small) * kernels.itemsize
        thin = available is not None and networks.AT_ONCE * layer > available
        one = networks.decode(
            model.codec, small, kernels, thin, model.optimized and model.device == "cpu"
        )
    elif model.codec is not None:
        one = networks.tiny_coder(model.codec, pixels, kernels) * kernels.itemsize
    if model.device != "cpu":
        return int(one)
    # One after the other; then joined, compared with infinity, clamped and rounded.
    return int(max(one + pictures, 3.5 * pictures))
