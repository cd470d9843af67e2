"""A contact sheet of a batch: what the network gets, to be looked at before a run (--dry-run)."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.images import to_pil
from ldm.images.files import save_image
from ldm.images.sheets import sheet
from ldm.text.tokenizer import CLIPTokenizer
from ldm.training.recipes.captioned import CaptionedRecipe

SIDE = 320  # px, the longer side of a picture on the sheet
MOST_ROWS = 64  # of a batch that are shown
LINES = 14  # of text below a picture: 75 tokens fit


@torch.no_grad()
def contact_sheet(recipe: CaptionedRecipe, batch: dict[str, Tensor]) -> Image.Image:
    """Lay out the pictures of a batch, decoded from its latents, with what goes with each.

    Below a picture stand its caption, as its tokens say it; for SDXL the sizes that it reads; and
    the weight of the row's loss. Beside it is its mask, if there are masks. Of more than
    ``MOST_ROWS`` rows some are shown, evenly spread. The batch has "ids", not kept contexts.
    """
    count = len(batch["x0"])
    shown = torch.linspace(0, count - 1, min(count, MOST_ROWS)).round().long()
    tokenizer = recipe.text_models[0].tokenizer
    device = next(recipe.vae.parameters()).device
    cells: list[Image.Image] = []
    labels: list[str] = []
    for row in shown.tolist():
        one = {name: value[row] for name, value in batch.items()}
        pixels = recipe.vae.decode(one["x0"][None].to(device))
        cells.append(at_side(to_pil(pixels.float().cpu().clamp(-1, 1))[0]))
        labels.append(describe(one, tokenizer))
        if "mask" in one:
            grey = one["mask"][0].mul(255).round().byte().cpu().numpy()
            mask = at_side(Image.fromarray(grey).convert("RGB"))
            cells.append(ImageOps.expand(mask, 1, "grey"))  # white is seen on white
            labels.append("mask")
    columns = 2 * min(len(shown), 2) if "mask" in batch else min(len(shown), 4)
    return sheet(cells, columns, labels, lines=LINES)


def write_first_batch(recipe: CaptionedRecipe, run: Path) -> Path:
    """Write ``first_batch.png`` into the folder of a run that need not have begun."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "first_batch.png"
    save_image(contact_sheet(recipe, recipe.first_batch()), path, overwrite=True)
    return path


def describe(one: dict[str, Tensor], tokenizer: CLIPTokenizer) -> str:
    """Return what stands below the picture of a row."""
    text = " ".join(word for word, _ in tokenizer.words(one["ids"][0].tolist()))
    parts = [text or "(no caption)"]
    if "time_ids" in one:
        height, width, top, left, *target = (f"{size:g}" for size in one["time_ids"].tolist())
        parts.append(
            f"[stored {width}x{height}, cropped at {left},{top}, to {target[1]}x{target[0]}]"
        )
    if "weight" in one:
        parts.append(f"[loss x {float(one['weight']):g}]")
    return " ".join(parts)


def at_side(picture: Image.Image) -> Image.Image:
    """Scale a picture to about ``SIDE`` px; small ones so that their pixels are seen."""
    longer = max(picture.size)
    if longer <= SIDE // 2:
        factor = SIDE // longer
        size = picture.width * factor, picture.height * factor
        return picture.resize(size, Image.Resampling.NEAREST)
    width, height = (max(1, round(side * SIDE / longer)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
