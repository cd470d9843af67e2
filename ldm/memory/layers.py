"""What layers hold at their peak: values of tensors that are alive at once, for one row.

Counted from what ``ldm.layers`` computes, statement by statement. A function returns the values
beside the layer's input, which its caller holds. Attention does not hold its N × N scores:
PyTorch's fused kernels compute them in parts (Rabe & Staats 2021; Dao et al. 2022), on CPUs for
heads of every size.
"""

from __future__ import annotations

from dataclasses import dataclass

from ldm.memory.system import has_amx


@dataclass(frozen=True)
class Kernels:
    """How layers compute.

    Attributes:
        itemsize: bytes of a value.
        direct: whether convolutions read pictures as they lie in memory, as those that
            ``Pipeline.optimize`` installs do. Others copy what they read and write into an order of
            their own.
        int8: whether convolutions of residual blocks round their inputs to 8 bits.
    """

    itemsize: int
    direct: bool = False
    int8: bool = False

    def copies(self, read: float, written: float) -> float:
        """Count the values of copies that a convolution makes of its input and its output."""
        if self.direct:
            return 0
        # Measured with oneDNN 3: the copy of the input is freed before that of the output is put
        # into its order; bfloat16 in AMX's tiles keeps both.
        return read + written if self.itemsize == 2 and has_amx() else max(read, written)

    def rounded(self, values: float) -> float:
        """Count the values of a rounded copy in 8 bits, with the scaled one that it is made of."""
        return values * (1 + 2 / self.itemsize) if self.int8 else 0


def resnet(read: int, written: int, pixels: int, out_pixels: int, kernels: Kernels) -> float:
    """Count ``ResnetBlock``; out_pixels: of what it returns, where it resamples.

    read, written: channels.
    """
    before, x, y = read * pixels, read * out_pixels, written * out_pixels
    moments = [
        2 * before,  # the norm and the activation
        (before + 2 * x) * (pixels != out_pixels),  # resampled, with its shortcut
        x + y + max(kernels.copies(x, y), kernels.rounded(x)),  # the first convolution
        3 * y,  # its result, the norm and the activation
        2 * y + max(kernels.copies(y, y), kernels.rounded(y)),  # the second one
        (read != written) * (2 * y + kernels.copies(x, y)),  # the shortcut
    ]
    return max(moments) + (x if pixels != out_pixels else 0)


def transformer(width: int, pixels: int, kernels: Kernels) -> float:
    """Count ``SpatialTransformer``: its gated layer is the widest, of 8 × its width."""
    # The block's input, its sum so far and their norm; then both halves of the gated layer, and
    # their product. Those that ``optimize`` installs write the product over the one half.
    gated = 3 + (8 if kernels.direct else 16)
    # The input, the norm, Q, K, V, the result, and its projection; bfloat16's K and V are packed.
    attention = 7 + (2 if kernels.itemsize == 2 else 0)
    projected = 2 + kernels.copies(1, 1)
    return max(gated, attention, projected) * width * pixels


def pixel_attention(width: int, pixels: int, kernels: Kernels) -> float:
    """Count ``SpatialAttention``."""
    packed = 2 if kernels.itemsize == 2 else 0
    return (6 + packed + (0 if kernels.direct else 1)) * width * pixels


def upsample(width: int, pixels: int, out_pixels: int, kernels: Kernels) -> float:
    """Count ``Upsample``."""
    y = width * out_pixels
    return 2 * y + max(kernels.copies(y, y), kernels.rounded(y))


def downsample(width: int, pixels: int, out_pixels: int, padded: bool, kernels: Kernels) -> float:
    """Count ``Downsample``; padded: whether a copy is padded first."""
    x, y = width * pixels, width * out_pixels
    return (x if padded else 0) + y + kernels.copies(x, y)
