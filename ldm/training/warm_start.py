"""Start a run from trained weights: to fine-tune a model, or to give its ends more channels.

Stable Diffusion's inpainting models were made so, from ones without the mask's channels (Rombach et
al. 2022, section 4.5): the inputs that are new begin with weights of zero.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoints.deferred import dense
from ldm.checkpoints.folder import find_weights, read_weights
from ldm.checkpoints.names import to_ours
from ldm.checkpoints.plain import is_finite, is_real
from ldm.config import UNetConfig
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.unet import UNet

# Layers that may have got channels, and the dimensions that hold a mean and a log-variance.
END_LAYERS = {
    "conv_in": (),
    "conv_out": (),
    "encoder.conv_in": (),
    "encoder.conv_out": (0,),
    "quant_conv": (0, 1),
    "post_quant_conv": (),
    "decoder.conv_in": (),
    "decoder.conv_out": (),
}


def new_unet(config: UNetConfig, start: str) -> UNet:
    """Build a U-Net with the weights of ``start``; for "", one that predicts 0, as Ho et al.'s."""
    unet = adapt_to_cpu(UNet(config))
    nn.init.zeros_(unet.conv_out.weight)
    assert unet.conv_out.bias is not None
    nn.init.zeros_(unet.conv_out.bias)
    begin_with(unet, start)
    return unet


@torch.no_grad()
def begin_with(module: nn.Module, folder: str) -> None:
    """Give ``module`` the weights of a component's folder; "" leaves it as it is.

    The folder's may have fewer channels at its ends. What is computed from the channels that both
    have stays the same: weights of new inputs are zero; those of new outputs stay as they are.
    Raises ArgumentError for a folder that is no such component, naming what differs, and
    CheckpointError for broken files.
    """
    if not folder:
        return
    if not Path(folder).is_dir():
        raise ArgumentError(f"start is {folder!r}, which is no folder of a trained model")
    path = find_weights(Path(folder), str(module.weight_stem))
    own = module.state_dict()
    found = to_ours(read_weights(path), own)
    for name in sorted(own.keys() ^ found.keys()):
        where = "lacks" if name in own else "has, unlike [model],"
        raise ArgumentError(f"start is {folder!r}, which {where} {name}")
    for name, new in own.items():
        old, layer = found[name], name.rpartition(".")[0]
        smaller = new.ndim == old.ndim and all(map(int.__le__, old.shape, new.shape))
        if new.shape != old.shape and not (smaller and layer in END_LAYERS):
            raise ArgumentError(
                f"start is {folder!r}, where {name} is {tuple(old.shape)}, but [model] makes "
                f"it {tuple(new.shape)}; only the first and last layers may get more channels"
            )
        halves = END_LAYERS.get(layer, ()) if new.shape != old.shape else ()
        if any(
            shape[dim] % 2 for dim in halves if dim < new.ndim for shape in (old.shape, new.shape)
        ):
            raise ArgumentError(
                f"start is {folder!r}, where {name} is {tuple(old.shape)}, which are no means and "
                "log-variances: their number is odd"
            )
        values = dense(old)
        if not is_real(values) or not is_finite(values):
            raise ArgumentError(
                f"start is {folder!r}, where {name} holds {values.dtype} or numbers that are not "
                "finite; expected finite floats"
            )
        copy_channels(new, values, halves)


def copy_channels(new: Tensor, old: Tensor, halves: tuple[int, ...]) -> None:
    """Write ``old`` (outputs, inputs, …) into the first channels of ``new``, in place.

    halves: dimensions that are two lists of channels, one behind the other.
    """
    for dim in sorted(halves, reverse=True):
        if dim < new.ndim:
            new, old = (x.unflatten(dim, (2, -1)) for x in (new, old))
    corner = tuple(map(slice, old.shape))
    new[corner[: 2 if 0 in halves else 1]] = 0
    new[corner] = old.to(new.dtype)
