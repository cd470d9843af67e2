"""How the classifier's pictures are changed in training: otherwise than the data builder's."""

import torch
import torch.nn.functional as F
from torch import Tensor

HUES_TURNED, GRAYED, BLURRED, MIXED = 0.35, 0.1, 0.3, 0.5  # shares of pictures
# Radians; factors of the picture's side (above 1 the thing is smaller); half the picture's side.
TURN, SCALE, MOVE = 0.3, (0.85, 1.4), 0.12
STRETCH, SHEAR = 0.2, 0.15  # of the sides' ratio (a logarithm); of one axis along the other
BENT, BENDS = 0.05, 5  # half the picture's side by which points are moved, so many a side

_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def augment(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Move, scale, turn, stretch, bend and mirror pictures (B, 3, H, W); blur some; change colours.

    Returns pictures of `size` pixels a side, and (B,) bool: hues turned or grayed, so that the
    colour word is no longer true. Those teach that shape, not colour, makes a lemon: red ones are
    asked for too.
    """
    count = len(x)
    grid = F.affine_grid(affine(count), [count, 3, size, size], align_corners=False)
    bends = torch.randn(count, 2, BENDS, BENDS) * BENT
    bends = F.interpolate(bends, (size, size), mode="bicubic", align_corners=True)
    x = F.grid_sample(
        x, grid + bends.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    blurred = torch.rand(count) < BLURRED
    soft = F.avg_pool2d(x[blurred], 2)
    x[blurred] = F.interpolate(soft, scale_factor=2.0, mode="bilinear", align_corners=False)
    draw = torch.rand(count)
    turned, grayed = draw < HUES_TURNED, draw > 1 - GRAYED
    x[turned] = turn_hues(x[turned], torch.empty(int(turned.sum())).uniform_(0.5, 5.8))
    x[grayed] = torch.einsum("c,bchw->bhw", _TO_YIQ[0], x[grayed])[:, None].expand(-1, 3, -1, -1)
    return x, turned | grayed


def affine(count: int) -> Tensor:
    """Random matrices (count, 2, 3) for ``affine_grid``."""
    angle, scale = torch.empty(count).uniform_(-TURN, TURN), torch.empty(count).uniform_(*SCALE)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    dx, dy = torch.empty(2, count).uniform_(-MOVE, MOVE)
    stretch = torch.empty(count).uniform_(-STRETCH, STRETCH).div(2).exp()
    shear = torch.empty(count).uniform_(-SHEAR, SHEAR)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = mirror * cos * stretch, shear * cos - sin / stretch, dx
    rows += mirror * sin * stretch, shear * sin + cos / stretch, dy
    return torch.stack(rows, 1).view(count, 2, 3)


def mix(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put a rectangle of another picture into some of (B, 3, H, W): CutMix (Yun et al. 2019).

    Returns pictures, the indices (B,) of the others, and the shares (B,) of each that are its own.
    """
    count, _, height, width = x.shape
    other = torch.randperm(count)
    sides = torch.rand(count).sqrt() * (torch.rand(count) < MIXED)
    middles = torch.rand(2, count)

    def inside(middle: Tensor, length: int) -> Tensor:
        at = (torch.arange(length) + 0.5) / length
        return (at - middle[:, None]).abs() < sides[:, None] / 2

    cut = inside(middles[0], height)[:, :, None] & inside(middles[1], width)[:, None]
    share = 1 - cut.float().mean((1, 2))
    return torch.where(cut[:, None], x[other], x), other, share


def turn_hues(x: Tensor, angle: Tensor) -> Tensor:
    """Turn the hue of RGB pictures (B, 3, H, W) by `angle` (B,) radians in YIQ; grays stay."""
    turn = torch.eye(3).repeat(len(angle), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = _TO_YIQ.inverse() @ turn @ _TO_YIQ
    return torch.einsum("bij,bjhw->bihw", matrix, x).clamp(-1, 1)
