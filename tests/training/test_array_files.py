"""Caches: full disks, and what was encoded by another VAE or an older version."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ldm.checkpoints.folder import load_component, save_component
from ldm.config import read_json, write_json
from ldm.errors import TrainingError
from ldm.training.data import step_generator
from ldm.training.recipes.array_files import Layout, create_arrays
from ldm.vae import AutoencoderKL
from tests.helpers.toy_latents import build

BIG = {"a.npy": Layout(np.float16, (1000, 500)), "b.npy": Layout(np.bool_, (7,))}
DATA = {"size": 32}


def test_files_take_their_space(tmp_path: Path) -> None:
    create_arrays(tmp_path / "new", BIG, "the latents")
    found = np.load(tmp_path / "new/a.npy")
    assert found.dtype == np.float16 and found.shape == (1000, 500) and not found.any()
    if hasattr(os, "posix_fallocate"):
        assert (tmp_path / "new/a.npy").stat().st_blocks * 512 >= 1_000_000


def test_a_full_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_006))
    with pytest.raises(
        TrainingError, match=r"the latents need 1,000,007 bytes in .*, but .* 1,000,006 free"
    ):
        create_arrays(tmp_path, BIG, "the latents")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system reserves no space")
def test_a_disk_that_fills_up_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TrainingError, match=r"1,000,007 bytes .*\(No space left on device\)"):
        create_arrays(tmp_path, BIG, "the latents")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (80 * i, 0, 99)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"no {i}")
    return folder


def test_latents_of_another_vae_are_encoded_again(
    parts: Path, source: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    vae = load_component(AutoencoderKL, parts / "vae", torch.float32)
    with torch.no_grad():
        vae.encoder.conv_out.weight.mul_(2)
    save_component(vae, other)
    build(parts, source, tmp_path / "run", data=DATA).prepare(Accelerator(cpu=True))
    recipe = build(parts, source, tmp_path / "run", vae=str(other), data=DATA)
    with pytest.warns(UserWarning, match="are of another VAE; they are encoded again"):
        recipe.prepare(Accelerator(cpu=True))
    fresh = build(parts, source, tmp_path / "fresh", vae=str(other), data=DATA)
    fresh.prepare(Accelerator(cpu=True))
    x0 = [each.batch(0, step_generator(0, 0))["x0"] for each in (recipe, fresh)]
    assert torch.equal(*x0)


def test_latents_of_an_older_version_are_encoded_again(
    parts: Path, source: Path, tmp_path: Path
) -> None:
    """They had no sizes; nothing of them is misread."""
    build(parts, source, tmp_path / "run", data=DATA).prepare(Accelerator(cpu=True))
    for name in ("begun", "latents"):
        path = tmp_path / "run/latents" / f"{name}.json"
        note = read_json(path)
        write_json(path, {key: note[key] for key in note if key not in ("form", "class_pictures")})
    with pytest.warns(UserWarning, match="are of an older version of ldm; they are encoded again"):
        build(parts, source, tmp_path / "run", data=DATA).prepare(Accelerator(cpu=True))


def test_one_picture_and_pictures_that_are_the_same(
    parts: Path, source: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    build(parts, source, tmp_path / "run", data=DATA).prepare(Accelerator(cpu=True))
    assert not [w for w in recwarn if "by heart" in str(w.message)]
    for i in (1, 2):
        shutil.copy(source / "0.png", source / f"{i}.png")
    with pytest.warns(UserWarning, match="all 3 pictures are the same; a model learns it by heart"):
        build(parts, source, tmp_path / "same", data=DATA).prepare(Accelerator(cpu=True))
    for i in (1, 2):
        (source / f"{i}.png").unlink()
    recipe = build(parts, source, tmp_path / "one", data=DATA)
    with pytest.warns(UserWarning, match="it has one picture; a model learns it by heart"):
        recipe.prepare(Accelerator(cpu=True))
    assert recipe.examples() == (1, 0)
    assert recipe.batch(0, step_generator(0, 0))["x0"].shape == (8, 4, 8, 8)
