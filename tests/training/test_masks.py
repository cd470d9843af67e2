"""Masks that weigh the loss: in every form, cropped and mirrored as the pictures, and their sum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image

from ldm.errors import ArgumentError, DataError
from ldm.training.data import open_data, step_generator
from tests.helpers.toy_latents import build

SIDE, SIZES = 32, [(32, 48), (40, 32), (32, 32), (51, 32)]  # height, width


def mask_of(row: int) -> np.ndarray:
    """White in a corner, grey beside it, black elsewhere."""
    height, width = SIZES[row]
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2, : width // 3] = 255
    mask[height // 2 :, : width // 4] = 127
    return mask


def write(folder: Path, form: str) -> tuple[Path, str]:
    """Write four pictures with masks in one of the forms; returns them, and ``data.mask``."""
    data, masks = folder / "data", folder / "masks"
    for each in (data, masks):
        each.mkdir()
    rows = []
    for i, (height, width) in enumerate(SIZES):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        picture, mask = small.resize((width, height)), Image.fromarray(mask_of(i))
        if form == "alpha":
            picture.putalpha(mask)
        picture.save(data / f"{i}.png")
        (data / f"{i}.txt").write_text(f"no {i}")
        if form == "masklabel":
            mask.save(data / f"{i}-masklabel.png")
        elif form == "folder":
            mask.convert("RGB").save(masks / f"{i}.bmp")
        elif form == "column":
            mask.save(masks / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"no {i}", "where": f"../masks/{i}.png"})
    if form == "column":
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (data / "metadata.jsonl").write_text(text)
    return data, {"folder": str(masks), "column": "where"}.get(form, form)


def cropped(row: int) -> torch.Tensor:
    """The mask as the picture is cropped: all have the height or width of the crop already."""
    height, width = SIZES[row]
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    cut = mask_of(row)[top : top + SIDE, left : left + SIDE]
    return torch.from_numpy(cut / np.float32(255))[None, None]


@pytest.mark.parametrize("form", ["alpha", "masklabel", "folder", "column"])
@pytest.mark.filterwarnings("ignore:.*outside of")
def test_masks_in_every_form(parts: Path, tmp_path: Path, form: str) -> None:
    source, mask = write(tmp_path, form)
    data: dict[str, Any] = {"size": SIDE, "flip": True, "mask": mask}
    recipe = build(parts, source, tmp_path / "run", data=data)
    assert len(recipe.data) == 4
    recipe.prepare(Accelerator(cpu=True))
    drawn = recipe.latents.draw(8, step_generator(0, 1))
    batch = recipe.batch(1, step_generator(0, 1))
    assert batch["mask"].shape == (8, 1, 8, 8)
    assert drawn.mirrored.any() and not drawn.mirrored.all()
    for row, turned, found in zip(drawn.rows, drawn.mirrored, batch["mask"], strict=True):
        whole = cropped(int(row))
        whole = whole.flip(-1) if turned else whole
        expected = F.interpolate(whole, size=(8, 8), mode="area")[0]
        assert (found - expected).abs().max() < 5e-4  # float16


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_loss_is_that_of_sd_scripts(parts: Path, tmp_path: Path, gamma: float | None) -> None:
    """``apply_masked_loss``: the squares times the mask, without another divisor."""
    source, mask = write(tmp_path, "alpha")
    recipe = build(
        parts, source, tmp_path / "run", data={"size": SIDE, "mask": mask}, min_snr_gamma=gamma
    )
    recipe.prepare(Accelerator(cpu=True))
    batch = recipe.batch(0, step_generator(0, 0))
    output = torch.randn(batch["x0"].shape, generator=torch.Generator().manual_seed(1))
    target = recipe.scheduler.target(batch["x0"], batch["noise"], batch["t"])
    loss = F.mse_loss(output, target, reduction="none") * batch["mask"]
    loss = loss.mean([1, 2, 3])
    if gamma is not None:  # of v: min(SNR, γ) / (SNR + 1)
        snr = recipe.scheduler.snr(batch["t"])
        loss = loss * snr.clamp(max=gamma) / (snr + 1)
    assert float(recipe.error(output, batch)[0]) == pytest.approx(float(loss.mean()), abs=1e-6)
    plain = {key: value for key, value in batch.items() if key != "mask"}
    assert float(recipe.error(output, plain)[0]) > 1.5 * float(loss.mean())


def test_pictures_without_a_mask_count_as_a_whole(parts: Path, tmp_path: Path) -> None:
    source, mask = write(tmp_path, "masklabel")
    (source / "2-masklabel.png").unlink()
    Image.new("L", SIZES[1][::-1]).save(source / "1-masklabel.png")
    with pytest.warns(UserWarning, match="1 of 4 pictures .* have no mask and count as a whole"):
        recipe = build(parts, source, tmp_path / "run", data={"size": SIDE, "mask": mask})
    with pytest.warns(UserWarning, match=r"the mask of .*1.png is black all over"):
        recipe.prepare(Accelerator(cpu=True))
    masks = np.load(tmp_path / "run/latents/32x32.masks.npy")
    assert (masks[2] == 1).all() and (masks[1] == 0).all()


def test_masks_that_cannot_work(parts: Path, tmp_path: Path) -> None:
    source, _ = write(tmp_path, "folder")
    with pytest.raises(ArgumentError, match="there is no mask beside the pictures"):
        build(parts, source, tmp_path / "run", data={"size": SIDE, "mask": "masklabel"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match=r"no mask of the pictures' names in .*empty"):
        build(parts, source, tmp_path, data={"size": SIDE, "mask": str(tmp_path / "empty")})
    with pytest.raises(ArgumentError, match="masks weigh the loss of latents only"):
        open_data(str(source), {"mask": "alpha"})
    Image.new("L", (64, 32)).save(tmp_path / "masks/1.bmp")
    data = {"size": SIDE, "mask": str(tmp_path / "masks")}
    recipe = build(parts, source, tmp_path / "run", data=data)
    with pytest.raises(DataError, match=r"masks/1.bmp has 64 × 32 px, but its picture .* 32 × 40"):
        recipe.prepare(Accelerator(cpu=True))


def test_masks_are_not_learnt_as_pictures(parts: Path, tmp_path: Path) -> None:
    source, _ = write(tmp_path, "masklabel")
    with pytest.warns(UserWarning, match='4 files are taken for masks.*data.mask = "masklabel"'):
        assert len(open_data(str(source))) == 4
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "data").mkdir()
    source, mask = write(inside / "data", "folder")
    Path(mask).rename(source / "masks")
    recipe = build(parts, source, tmp_path / "run", data={"size": SIDE, "mask": "masks"})
    assert len(recipe.data) == 4 and recipe.latents.masks is not None


def test_without_the_option_what_is_transparent_is_white(tmp_path: Path) -> None:
    source, _ = write(tmp_path, "alpha")
    pixels = open_data(str(source), {"size": SIDE}).pixels(torch.tensor([2]))[0]
    assert (pixels[:, torch.from_numpy(mask_of(2)) == 0] == 1).all()
