"""Previews: the map is that of least squares, comes with the model, and shows the colours."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm import Pipeline
from ldm.config import read_json, write_json
from ldm.errors import CheckpointError
from ldm.techniques.preview import LinearPreview, fit, fit_to, r_squared, shrink

WEIGHT = torch.tensor([[0.1, -0.05, 0.02, 0.0], [0.0, 0.1, 0.03, 0.05], [-0.08, 0.02, 0.0, 0.07]])
BIAS = torch.tensor([0.5, 0.45, 0.55])
PREVIEW = LinearPreview(WEIGHT, BIAS)


def latents(seed: int = 0) -> Tensor:
    return torch.randn((3, 4, 5, 6), generator=torch.Generator().manual_seed(seed))


def test_the_map() -> None:
    z = latents()
    colours = PREVIEW(z)
    assert colours.shape == (3, 3, 5, 6)
    want = WEIGHT.numpy() @ z[1, :, 2, 3].numpy() + BIAS.numpy()
    assert np.abs(colours[1, :, 2, 3].numpy() - want).max() < 1e-6
    far = PREVIEW(100 * z.bfloat16())
    assert far.dtype == torch.float32
    assert (far.min(), far.max()) == (0, 1)


def test_shrink_is_the_mean_of_squares() -> None:
    pixels = torch.rand((2, 3, 16, 24), generator=torch.Generator().manual_seed(0)) * 4 - 2
    got = shrink(pixels, 8)
    assert got.shape == (2, 3, 2, 3)
    want = (pixels[1, 2, 8:16, 16:24].clamp(-1, 1).mean() + 1) / 2
    assert abs(got[1, 2, 1, 2] - want) < 1e-6


def test_fit_finds_the_map() -> None:
    z = latents()
    found = fit(z, PREVIEW(z))
    assert (found.weight - WEIGHT).abs().max() < 1e-5
    assert (found.bias - BIAS).abs().max() < 1e-5
    assert r_squared(found, z, PREVIEW(z)) > 0.99999


def test_fit_is_that_of_least_squares() -> None:
    z, noise = latents(), torch.randn((3, 3, 5, 6), generator=torch.Generator().manual_seed(1))
    colours = 0.5 + 0.1 * noise + PREVIEW(z) / 10
    x = np.concatenate([z.permute(0, 2, 3, 1).reshape(-1, 4), np.ones((90, 1))], axis=1)
    want, *_ = np.linalg.lstsq(x, colours.permute(0, 2, 3, 1).reshape(-1, 3).numpy(), rcond=None)
    found = fit(z, colours)
    assert np.abs(found.weight.numpy() - want[:4].T).max() < 1e-5
    assert np.abs(found.bias.numpy() - want[4]).max() < 1e-5
    share = (
        1
        - ((found(z) - colours) ** 2).sum()
        / ((colours - colours.mean((0, 2, 3), keepdim=True)) ** 2).sum()
    )
    assert abs(r_squared(found, z, colours) - float(share)) < 1e-5
    assert r_squared(found, z, colours) < 0.5


def test_latents_without_contrast() -> None:
    z = torch.ones(1, 4, 3, 3)
    found = fit(z, torch.full((1, 3, 3, 3), 0.25))
    assert (found(z) - 0.25).abs().max() < 1e-5


def test_a_vae_without_a_map() -> None:
    """One whose decoder is linear is found out exactly."""
    back = torch.linalg.pinv(WEIGHT)

    def encode(pixels: Tensor) -> Tensor:
        return torch.einsum("cr,brhw->bchw", back, shrink(pixels, 4) - BIAS[:, None, None])

    def decode(z: Tensor) -> Tensor:
        colours = torch.einsum("rc,bchw->brhw", WEIGHT, z) + BIAS[:, None, None]
        return (colours * 2 - 1).repeat_interleave(4, 2).repeat_interleave(4, 3)

    found = fit_to(encode, decode, 4)
    z = encode(torch.rand((2, 3, 32, 32)) * 2 - 1)
    assert (found(z) - shrink(decode(z), 4)).abs().max() < 1e-4
    assert torch.equal(found.weight, fit_to(encode, decode, 4).weight)


def test_the_built_in_map_shows_what_is_drawn() -> None:
    """README's R²; one that is fitted without data is a little worse."""
    pipe = Pipeline.from_pretrained()
    x0 = torch.cat([s.x0 for s in pipe.stream("a red car", seed=1, num_inference_steps=4)])
    colours = shrink(pipe.decode(x0), 8)
    assert r_squared(pipe.vae.preview, x0, colours) > 0.85
    assert torch.equal(pipe.preview(x0), pipe.vae.preview(x0))
    pipe.vae.preview = None
    assert pipe.preview(x0).shape == (4, 3, 16, 16)
    assert r_squared(pipe.vae.preview, x0, colours) > 0.8


def test_a_map_goes_with_its_model(folder: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    assert pipe.vae.preview is None
    pipe.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "vae" / "preview.json").exists()
    colours = pipe.preview(latents())
    pipe.save_pretrained(tmp_path / "fitted")
    again = Pipeline.from_pretrained(tmp_path / "fitted")
    assert torch.equal(again.vae.preview(latents()), colours)
    assert Pipeline.from_pretrained(folder, vae=folder / "vae").vae.preview is None


@pytest.mark.parametrize(
    "values",
    [
        {"weight": [[1, 2, 3, 4]] * 3},
        {"weight": [[1, 2], [3]], "bias": [1, 2, 3]},
        {"weight": [[1, 2, 3, 4]] * 2, "bias": [1, 2, 3]},
        {"weight": [[1, 2, 3, 4]] * 3, "bias": [1, 2]},
        {"weight": [[1, 2, 3, float("nan")]] * 3, "bias": [1, 2, 3]},
        {"weight": [["x"] * 4] * 3, "bias": [1, 2, 3]},
        {"weight": 3, "bias": "x"},
    ],
)
def test_broken_maps(folder: Path, tmp_path: Path, values: dict) -> None:
    shutil.copytree(folder, tmp_path / "m")
    write_json(tmp_path / "m" / "vae" / "preview.json", values)
    with pytest.raises(CheckpointError, match=r"preview\.json is no map to colours"):
        Pipeline.from_pretrained(tmp_path / "m")


def test_a_map_for_another_number_of_channels(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    path = tmp_path / "m" / "vae" / "preview.json"
    write_json(path, {"weight": [[1.0, 2.0]] * 3, "bias": [0.0] * 3})
    with pytest.raises(CheckpointError, match="4 latent channels"):
        Pipeline.from_pretrained(tmp_path / "m")
    assert read_json(path)["bias"] == [0.0] * 3
