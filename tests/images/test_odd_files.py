"""Pictures that are no pictures, or would take all memory: refused before anything is read."""

from __future__ import annotations

import io
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.errors import ArgumentError, ImageError
from ldm.images import image_grid, load_image, load_layer, read_parameters
from ldm.images.depth import colourfulness, load_depth
from ldm.images.generation_info import given_digest, read_generation_info
from ldm.techniques.outpainting import extend_canvas

LOADERS = (load_image, load_layer, load_depth, read_parameters, read_generation_info)


@pytest.mark.parametrize("load", LOADERS)
def test_only_regular_files(load, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder").mkdir()
    names = {
        "pipe.png": "a pipe", "folder": "a folder", "/dev/zero": "a device",
        "/dev/random": "a device", "/dev/stdin/x": None, "/proc/self/status": None,
    }  # fmt: skip
    for name, kind in names.items():
        path = tmp_path / name
        with pytest.raises(ImageError) as caught:
            load(path)
        if kind:
            assert str(caught.value) == f"{path} is {kind}; give an image file"


def test_digests_of_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    os.mkfifo(path)
    with pytest.raises(ImageError, match="is a pipe"):
        given_digest("ip_adapter_image", path)


def test_no_program_is_started(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    with pytest.raises(ImageError, match="is not an image"):
        load_image(path)


def test_bombs(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (20_000, 20_000)).save(path)
    assert path.stat().st_size < 100_000
    before, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in LOADERS:
        with pytest.raises(ImageError, match="more than 89 megapixels"):
            load(path)
    assert time.process_time() - before < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000


def test_no_pixels() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 5)))


def test_sizes_are_checked_before_memory_is_taken() -> None:
    image = Image.new("RGB", (64, 64))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for margins in ((30_000,) * 4, (10**9, 0, 0, 0), (0, 9000, 0, 0), (0, 0, 4096, 8000)):
        with pytest.raises(ArgumentError, match="at most 16,777,216 pixels and 8192 a side"):
            extend_canvas(image, *margins)
    with pytest.raises(ArgumentError, match="more than 256 megapixels"):
        image_grid([Image.new("1", (10_000, 5000))] * 8)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000


def test_colourfulness() -> None:
    values = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    wide = values.astype(int)
    assert colourfulness(Image.fromarray(values)) == (wide.max(axis=2) - wide.min(axis=2)).max()
    content = io.BytesIO()
    Image.new("RGB", (5, 5), (90, 95, 90)).save(content, "PNG")
    assert load_depth(Image.open(content)).mode == "F"
