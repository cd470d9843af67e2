"""What a call of each network holds at its peak: values of tensors, for one row or one picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ldm.config import CLIPTextConfig, TAESDConfig, UNetConfig, VAEConfig
from ldm.memory import layers
from ldm.memory.layers import Kernels

TOKENS = 77  # of a text, for each chunk
# Of the decoder in strips, see ``ldm.fast.strips``.
WHOLE = 32 << 20  # bytes of a layer's values up to which it is computed whole
STRIP = 3 << 20  # about the bytes of strips that take the least memory
FAST_STRIP = 16 << 20  # of strips that take the least time
BESIDE = 1.5  # strips that are alive beside the layer: measured 0.8 to 1.6
AT_ONCE = 5  # layers' values that a whole decode holds at its peak: counted 4.75
LATENTS = 32768  # of all rows of a U-Net call on a CPU: two of 1024 px, eight of 512 px


@dataclass
class Peak:
    """The most values that were alive at once, and what stays alive meanwhile."""

    most: float = 0
    kept: float = 0  # skip connections, and what callers hold

    def see(self, values: float) -> None:
        """Count a moment at which so many values are alive beside what is kept."""
        self.most = max(self.most, self.kept + values)


def halves(height: int, width: int, levels: int) -> list[int]:
    """Return the pixels of each level, finest first; sides are rounded up."""
    sizes = []
    for _ in range(levels):
        sizes.append(height * width)
        height, width = -(-height // 2), -(-width // 2)
    return sizes


def block(
    peak: Peak, config: UNetConfig, read: int, level: int, pixels: int, with_attention: bool,
    kernels: Kernels,
) -> None:  # fmt: skip
    """Count a residual block and its attention; ``peak.kept`` has what is alive without them."""
    width = config.block_out_channels[level]
    peak.see(read * pixels + layers.resnet(read, width, pixels, pixels, kernels))
    if with_attention:
        text = config.cross_attention_dim is not None
        attention = layers.transformer if text else layers.pixel_attention
        peak.see(width * pixels + attention(width, pixels, kernels))


def way_down(
    config: UNetConfig, height: int, width: int, kernels: Kernels
) -> tuple[Peak, list[int]]:
    """Count the half of a U-Net that reads; also return the values of each skip connection."""
    widths, sizes = config.block_out_channels, halves(height, width, config.levels)
    skips = [widths[0] * sizes[0]]
    peak = Peak(kept=skips[0])
    peak.see(kernels.copies(config.in_channels * sizes[0], skips[0]))
    for level, kind in enumerate(config.down_block_types):
        before, channels, pixels = widths[max(level - 1, 0)], widths[level], sizes[level]
        for layer in range(config.layers[level]):
            read = before if layer == 0 else channels
            peak.kept -= read * pixels  # the last of the skip connections is what is read
            block(peak, config, read, level, pixels, "Attn" in kind, kernels)
            peak.kept += read * pixels
            skips.append(channels * pixels)
            peak.kept += skips[-1]
        if level < config.levels - 1:
            after = sizes[level + 1]
            padded = config.downsample_padding == 0
            peak.see(layers.downsample(channels, pixels, after, padded, kernels))
            skips.append(channels * after)
            peak.kept += skips[-1]
    if config.mid_block_type is not None:
        last = config.levels - 1
        peak.kept -= skips[-1]
        block(peak, config, widths[last], last, sizes[last], config.add_attention, kernels)
        peak.kept += skips[-1]
    return peak, skips


def rows_at_once(height: int, width: int) -> int:
    """Return how many rows a U-Net call on a CPU has at most; height, width: of the latents.

    Of small pictures, many rows at once are faster, as products grow larger. Of large ones they are
    slower, as nothing that a layer writes is in the caches when the next one reads it: eight rows
    of XL at 1024 px took 1.12 times as long as eight calls of one (`tools.bench --only scale`).
    """
    return max(1, LATENTS // (height * width))


def unet_call(
    config: UNetConfig, height: int, width: int, kernels: Kernels, steered: bool = False
) -> float:
    """Count a U-Net's call on latents of a size, for one row.

    steered: whether a ControlNet adds to the skip connections, of which there are two then.
    """
    peak, skips = way_down(config, height, width, kernels)
    widths, sizes = config.block_out_channels, halves(height, width, config.levels)
    last = config.levels - 1
    if steered:
        peak.see(2 * sum(skips))
        peak.kept += sum(skips)
    incoming = widths[last] * sizes[last]  # which its caller holds through a whole block
    for level in reversed(range(config.levels)):
        channels, pixels = widths[level], sizes[level]
        kind = config.up_block_types[last - level]
        x = incoming
        peak.kept += incoming
        for layer in range(config.layers[level] + 1):
            skip = skips.pop()
            read = x // pixels + skip // pixels
            peak.see((0 if layer == 0 else x) + x + skip)  # joined, beside the two
            peak.kept -= skip
            block(peak, config, read, level, pixels, "Attn" in kind, kernels)
            x = channels * pixels
        peak.kept -= incoming
        if level > 0:
            peak.kept += incoming
            peak.see(x + layers.upsample(channels, pixels, sizes[level - 1], kernels))
            peak.kept -= incoming
            incoming = channels * sizes[level - 1]
    peak.see(widths[0] * sizes[0] * 3 + kernels.copies(widths[0] * sizes[0], 0))
    return peak.most


def controlnet_call(
    config: UNetConfig, height: int, width: int, kernels: Kernels, uses: int
) -> float:
    """Count the calls of so many ControlNets of a U-Net's sizes, for one row.

    Each gives what is added to the skip connections; the sum so far is kept.
    """
    peak, skips = way_down(config, height, width, kernels)
    result = sum(skips)
    hint = config.block_out_channels[0] * height * width
    found = 2 * result + kernels.copies(skips[0], skips[0]) + (result if uses > 1 else 0)
    return hint + max(peak.most, found + result) + (result if uses > 1 else 0)


def decoder_blocks(config: VAEConfig, pixels: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (channels read, channels written, pixels, pixels after) of each level, coarsest first.

    pixels: of the latents.
    """
    widths = config.block_out_channels[::-1]
    for level, width in enumerate(widths):
        after = pixels * 4 if level < len(widths) - 1 else pixels
        yield widths[max(level - 1, 0)], width, pixels, after
        pixels = after


def decode_whole(config: VAEConfig, pixels: int, kernels: Kernels) -> float:
    """Count the decoder of a VAE on latents of so many pixels."""
    width = config.block_out_channels[-1]
    peak = Peak()
    peak.see(width * pixels + layers.resnet(width, width, pixels, pixels, kernels))
    peak.see(width * pixels + layers.pixel_attention(width, pixels, kernels))
    for read, written, size, after in decoder_blocks(config, pixels):
        incoming = read * size  # which its caller holds
        peak.see(incoming + layers.resnet(read, written, size, size, kernels))
        x = written * size
        peak.see(incoming + x + layers.resnet(written, written, size, size, kernels))
        if after != size:
            peak.see(incoming + x + layers.upsample(written, size, after, kernels))
    return peak.most


def widest(config: VAEConfig, pixels: int) -> int:
    """Count the values of the largest of the decoder's layers."""
    return max(
        max(read, written) * size for read, written, size, _ in decoder_blocks(config, pixels)
    )


def decode(
    config: VAEConfig, pixels: int, kernels: Kernels, thin: bool, fast_strips: bool
) -> float:
    """Count the decoder in bytes, as ``ldm.latents`` chooses: whole, or in strips.

    thin: whether memory is too short for a whole one. fast_strips: whether large pictures are
    decoded in strips in any case, which only the decoder that is installed on a CPU does.
    """
    whole = decode_whole(config, pixels, kernels) * kernels.itemsize
    layer = widest(config, pixels) * kernels.itemsize
    if not thin and not (fast_strips and layer > WHOLE):
        return whole
    return min(whole, max(layer + BESIDE * (STRIP if thin else FAST_STRIP), 2.5 * WHOLE))


def encode(config: VAEConfig, pixels: int, kernels: Kernels) -> float:
    """Count the encoder of a VAE on so many pixels."""
    widths, peak, read = config.block_out_channels, Peak(), config.block_out_channels[0]
    peak.see(kernels.copies(config.in_channels * pixels, read * pixels) + read * pixels)
    for level, width in enumerate(widths):
        incoming, x = read * pixels, width * pixels
        peak.see(incoming + layers.resnet(read, width, pixels, pixels, kernels))
        if config.layers_per_block > 1:
            peak.see(incoming + x + layers.resnet(width, width, pixels, pixels, kernels))
        if level < len(widths) - 1:
            down = layers.downsample(width, pixels, pixels // 4, True, kernels)
            peak.see(incoming + x + down)
            pixels //= 4
        read = width
    peak.see(read * pixels + layers.pixel_attention(read, pixels, kernels))
    return peak.most


def tiny_coder(config: TAESDConfig, pixels: int, kernels: Kernels) -> float:
    """Count a coder of a TAESD, whose layers all have one width, on so many pixels of pictures."""
    x = config.decoder_block_out_channels[0] * pixels
    return 3 * x + kernels.copies(x, x)


def text_encoder(config: CLIPTextConfig) -> float:
    """Count a text encoder on one text of ``TOKENS``."""
    return TOKENS * (6 * config.hidden_size + 3 * config.intermediate_size)


def text_keys(config: UNetConfig) -> int:
    """Count the keys and values of one text, which ``optimize`` keeps for all steps."""
    if config.cross_attention_dim is None:
        return 0
    ways = [*zip(config.down_depths, config.block_out_channels, strict=True)]
    ways += zip(config.up_depths, config.block_out_channels[::-1], strict=True)
    widths = [width * depth for depths, width in ways for depth in depths]
    return 2 * TOKENS * (sum(widths) + config.mid_depth * config.block_out_channels[-1])


def int8_weights(config: UNetConfig) -> int:
    """Count the bytes of the weights that ``optimize(int8=True)`` adds to the plain ones."""
    widths, total = config.block_out_channels, 0
    depths = [*zip(config.down_depths, widths, strict=True)]
    depths += zip(config.up_depths, widths[::-1], strict=True)
    if config.cross_attention_dim is not None:
        total += sum(8 * width**2 * depth for each, width in depths for depth in each)
    for level, width in enumerate(widths):
        before = widths[max(level - 1, 0)]
        down = before + width * (config.layers[level] - 1)
        up = widths[min(level + 1, len(widths) - 1)] + width * (2 * config.layers[level] + 1)
        convolutions = 2 * config.layers[level] + 1
        total += 9 * width * (down + up + convolutions * width)
    return total


def fp8_weights(config: UNetConfig) -> int:
    """Count the bytes of the weights that ``optimize(fp8=True)`` adds to the plain ones, at most.

    Of each transformer block 18 matrices of its width: four of attention among pixels, two of that
    to the text, 12 of the feed-forward; and two projections around the blocks.
    """
    if config.cross_attention_dim is None:
        return 0
    ways = [*zip(config.down_depths, config.block_out_channels, strict=True)]
    ways += zip(config.up_depths, config.block_out_channels[::-1], strict=True)
    ways.append(((config.mid_depth,), config.block_out_channels[-1]))
    return sum(width**2 * (18 * depth + 2) for depths, width in ways for depth in depths)
