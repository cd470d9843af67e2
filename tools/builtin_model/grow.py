"""Give a trained U-Net more layers, such that it computes the same as before.

    python -m tools.builtin_model.grow --output runs/grown
    python -m tools.builtin_model.train --start runs/grown --minutes 60

New residual blocks, transformers and layers of transformers begin as identities: what they add to
their input is 0 (Chen et al. 2016, "Net2Net", section 3.2). So the larger network goes on from what
the smaller one has learnt. The widths must be the same; there may be more layers in the blocks of a
level, attention in more blocks, and more layers in the transformers of a level
(`transformer_layers_per_block`).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.folder import load_component
from ldm.cli.common import EXIT_CODES, run
from ldm.cli.parsing import Parser
from ldm.config import UNetConfig
from ldm.errors import ArgumentError
from ldm.unet import UNet
from tools.builtin_model.parts import save_in_parts

HERE = Path(__file__).parent
UP_LAYER = re.compile(r"(up_blocks\.(\d+)\.(?:resnets|attentions)\.)(\d+)(\..+)")
BLOCK_LAYER = re.compile(
    r"(?:down|up)_blocks\.\d+\.(?:resnets|attentions)\.\d+\.|.+\.transformer_blocks\.\d+\."
)
# The last layer of a residual block's and of a transformer's own part.
LAST = ("conv2", "proj_out")
# … and of each part of a transformer's layer.
TRANSFORMER_LAYER = re.compile(
    r"(.*attentions\.\d+\.)transformer_blocks\.\d+\.(attn\d\.to_out\.0|ff\.net\.2)\..+"
)


@torch.no_grad()
def grow(unet: UNet, config: UNetConfig) -> UNet:
    """Return a U-Net of another configuration with the same output.

    Raises ArgumentError where that has other widths, fewer layers or another number of levels.
    """
    if config.levels != unet.config.levels:
        raise ArgumentError(
            f"the network has {config.levels} levels; expected {unet.config.levels}, as before"
        )
    new = UNet(config)
    own = new.state_dict()
    pairs = zip(config.layers, unet.config.layers, strict=True)
    rename = up_layer_renamer([new - old for new, old in pairs])
    values = {rename(name): value for name, value in unet.state_dict().items()}
    for name, value in values.items():
        if name not in own or own[name].shape != value.shape:
            there = "nothing" if name not in own else str(tuple(own[name].shape))
            raise ArgumentError(
                f"the network has {there} in the place of {name}, {tuple(value.shape)}; a grown "
                "one has the same block_out_channels, and at least the same layers and attention"
            )
    added = own.keys() - values.keys()
    for name in sorted(added):
        if not BLOCK_LAYER.match(name):
            raise ArgumentError(f"the network also has {name}, which is in no layer of a block")
        inner = TRANSFORMER_LAYER.fullmatch(name)
        # In a transformer that is new itself, its last layer is the one that begins with zeros.
        deeper = inner is not None and f"{inner[1]}proj_out.weight" not in added
        values[name] = torch.zeros_like(own[name]) if deeper else begin(name, own[name])
    new.load_state_dict(values)
    return new


def up_layer_renamer(more: Sequence[int]) -> Callable[[str], str]:
    """Return what gives a layer its name in a network with so many more layers in each level.

    more: of the levels from the finest to the coarsest.

    New layers of a block of the upward path lie behind its first one, which still reads the output
    of the lowest layer beside it, and before the others, which still read those of the higher ones.
    """

    def rename(name: str) -> str:
        match = UP_LAYER.fullmatch(name)
        if match is None or int(match[3]) == 0:
            return name
        return f"{match[1]}{int(match[3]) + more[-1 - int(match[2])]}{match[4]}"

    return rename


def begin(name: str, value: Tensor) -> Tensor:
    """Return the first value of a new layer's parameter: that of an identity, or as it is."""
    layer = name.rsplit(".", 2)[-2]
    if layer in LAST:
        return torch.zeros_like(value)
    if layer == "conv_shortcut":  # from hidden channels and a skip connection's: the former pass
        if name.endswith("bias"):
            return torch.zeros_like(value)
        out, channels = value.shape[:2]
        return torch.eye(out, channels)[:, :, None, None]
    return value


def main(argv: list[str] | None = None) -> int:
    """Grow the U-Net of a model; returns the exit code."""
    parser = Parser(
        prog="python -m tools.builtin_model.grow",
        description=__doc__.splitlines()[0],
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    add("--model", type=Path, default=Path("weights"), help="folder with unet/ (default: weights)")
    add("--network", type=Path, default=HERE / "unet.json", help="config.json of the new U-Net")
    add("--output", type=Path, required=True, help="folder that gets unet/")
    add("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)
    return run(lambda: grow_folder(arguments), arguments.debug)


def grow_folder(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    torch.manual_seed(0)
    unet = load_component(UNet, arguments.model / "unet", torch.float32)
    grown = grow(unet, UNetConfig.from_file(arguments.network))
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_in_parts(grown, arguments.output / "unet", torch.float16)
    before, after = (sum(p.numel() for p in each.parameters()) for each in (unet, grown))
    print(
        f"{before / 1e6:.1f}M parameters have become {after / 1e6:.1f}M, in {arguments.output}/unet"
    )


if __name__ == "__main__":
    sys.exit(main())
