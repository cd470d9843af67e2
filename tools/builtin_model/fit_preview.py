"""Fit the previews of a model: the linear map from its VAE's latents to colours.

    python -m tools.builtin_model.fit_preview --data data/icons [--model FOLDER] [--output FILE]

By least squares on pictures to train on; R² on held-out ones, and on what the model itself guesses
at while it draws. Beside it, how good the map is that is fitted without data (`preview.fit_to`).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm.cli.common import EXIT_CODES, run
from ldm.cli.parsing import Parser
from ldm.config import write_json
from ldm.pipeline import Pipeline
from ldm.techniques.preview import LinearPreview, fit, r_squared, shrink
from ldm.training.data import CaptionedImages
from ldm.vae import AutoencoderKL
from tools.builtin_model.evaluation.prompts import choose, prompts

TRAIN, HELD_OUT, DRAWN, SEED = 512, 256, 8, 0


@torch.no_grad()
def of_pictures(pipe: Pipeline, data: CaptionedImages, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Latents of pictures, and the colours of what the decoder makes of them."""
    latents = torch.cat([pipe.vae.encode(data.pixels(part)) for part in indices.split(16)])
    return latents, shrink(pipe.decode(latents), pipe.vae.config.scale)


def of_guesses(pipe: Pipeline, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Latents x̂₀ of all steps of drawing the prompts, and their colours."""
    latents = torch.cat([state.x0 for state in pipe.stream(prompts, seed=SEED)])
    return latents, shrink(pipe.decode(latents), pipe.vae.config.scale)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(prog="fit_preview.py", description=__doc__, epilog=EXIT_CODES)
    parser.add_argument("--data", type=Path, required=True, help="the folder of build_icons.py")
    parser.add_argument("--model", help="a diffusers folder (default: the built-in model)")
    parser.add_argument("--output", type=Path, help="where to write the map (default: nowhere)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    def action() -> None:
        pipe = Pipeline.from_pretrained(arguments.model, device="cpu", dtype="float32")
        data = CaptionedImages(arguments.data)
        generator = torch.Generator().manual_seed(SEED)
        some = torch.randperm(len(data.held_out), generator=generator)[:HELD_OUT]
        preview = fit(*of_pictures(pipe, data, data.draw(TRAIN, generator)))
        vae = pipe.vae
        assert isinstance(vae, AutoencoderKL)  # of a model of pixels, encode fails above
        vae.preview = None  # not the folder's
        pipe.preview(torch.zeros(1, vae.config.latent_channels, 1, 1))  # fits one without data
        assert isinstance(vae.preview, LinearPreview)
        texts = [prompt.text for _, prompt in choose(prompts(), count=DRAWN)]
        shown = {
            "held-out pictures": of_pictures(pipe, data, data.held_out[some]),
            "guesses while drawing": of_guesses(pipe, texts),
        }
        for name, pairs in shown.items():
            print(
                f"R² on {name}: {r_squared(preview, *pairs):.4f}; "
                f"fitted without data: {r_squared(vae.preview, *pairs):.4f}"
            )
        if arguments.output:
            write_json(arguments.output, preview.values())

    return run(action, arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
