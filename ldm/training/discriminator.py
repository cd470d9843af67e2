"""A network that tells real patches from reconstructed ones, to train an autoencoder against.

Sources: Isola et al. 2017, section 3.2.2 (PatchGAN); Esser et al. 2021, section 3.1 (that such a
loss lets an autoencoder compress more). The hinge loss is Lim & Ye's 2017.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 24  # px of a picture that has a patch


class PatchDiscriminator(nn.Module):
    """Pixels (B,C,H,W) in [-1, 1] → a score for each patch, (B,1,h,w): high where it looks real.

    With three halvings a score sees 70 × 70 pixels. Group instead of batch normalisation: a
    picture's scores do not depend on its neighbours in the batch.
    """

    def __init__(self, in_channels: int = 3, width: int = 32, layers: int = 3) -> None:
        """width: channels after the first halving, a multiple of 8; they double at each next."""
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for stride in (2,) * (layers - 1) + (1,):
            blocks += [
                nn.Conv2d(width, 2 * width, 4, stride, 1),
                nn.GroupNorm(8, 2 * width),
                nn.LeakyReLU(0.2),
            ]
            width *= 2
        self.net = nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def adversarial_terms(
    discriminator: nn.Module, x: Tensor, reconstruction: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the autoencoder's loss and the discriminator's; x, reconstruction: (B,…).

    The first, −D(x̂), has no gradient for the discriminator; the second,
    max(0, 1 − D(x)) + max(0, 1 + D(x̂)), none for the autoencoder. Their sum trains both at once.
    """
    fixed = {name: value.detach() for name, value in discriminator.named_parameters()}
    fooling = -torch.func.functional_call(discriminator, fixed, (reconstruction,)).float().mean()
    real, drawn = discriminator(x).float(), discriminator(reconstruction.detach()).float()
    return fooling, F.relu(1 - real).mean() + F.relu(1 + drawn).mean()
