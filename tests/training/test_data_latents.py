"""Latents kept by the latent recipe: of one size or in buckets, mirrored, unreadable rows."""

from __future__ import annotations

import json
import math
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ldm.cli.train import printed_log
from ldm.config import SchedulerConfig
from ldm.errors import ArgumentError, DataError
from ldm.scheduler import DDPMScheduler
from ldm.training.batches import draw_times
from ldm.training.data import step_generator
from ldm.training.data.buckets import bucket_sizes, nearest_bucket
from ldm.training.objectives import check_zero_snr
from ldm.training.recipes import counted
from ldm.training.recipes.cached_contexts import CachedContexts
from ldm.training.recipes.cached_latents import CachedLatents
from ldm.training.recipes.latent import LatentRecipe
from ldm.vae import AutoencoderKL
from tests.helpers.toy_latents import build

SIZES = [(40, 40), (30, 61), (64, 33), (44, 40), (50, 90), (100, 48)]  # height, width


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen pictures of six sizes, with captions."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for i in range(18):
        rng = np.random.default_rng(i)
        height, width = SIZES[i % 6]
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
        rows.append({"file_name": f"{i:02d}.png", "caption": f"picture {i}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    np.save(folder / "images.npy", images)
    rows = [
        {"split": "train" if i % 4 else "test", "caption": f"no {i % 7}", "weight": 1 + i % 3}
        for i in range(20)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@torch.no_grad()
def encoded(recipe: LatentRecipe, rows: torch.Tensor, size: Any = None) -> torch.Tensor:
    """Latents of rows as they should be, but for the batches in which they were encoded."""
    return recipe.vae.encode(recipe.data.pixels(rows, size)).float()


def test_a_batch_of_one_size(parts: Path, arrays: Path, tmp_path: Path) -> None:
    recipe = build(parts, arrays, tmp_path)
    recipe.prepare(Accelerator(cpu=True))
    batch = recipe.batch(3, step_generator(1, 3))
    generator = step_generator(1, 3)
    train = torch.tensor([i for i in range(20) if i % 4])
    weights = torch.tensor([1.0 + i % 3 for i in train.tolist()])
    rows = train[torch.multinomial(weights, 8, replacement=True, generator=generator)]
    dropped = torch.rand(8, generator=generator) < 0.25
    assert torch.equal(batch["t"], draw_times(recipe.scheduler, 8, generator))
    noise = torch.randn((8, 4, 8, 8), generator=generator)
    assert torch.equal(batch["noise"], noise)
    texts = ["" if d else f"no {i % 7}" for i, d in zip(rows.tolist(), dropped, strict=True)]
    ids = torch.tensor(recipe.text_models[0].tokenizer(texts), dtype=torch.int32)
    assert torch.equal(batch["ids"], ids[:, None])
    assert any(dropped) and not all(dropped)
    expected = encoded(recipe, rows)
    assert (batch["x0"] - expected).abs().max() < 0.03 * expected.abs().max()  # bf16 and float16


def test_captions_that_are_cut_are_counted(parts: Path, photos: Path, tmp_path: Path) -> None:
    """At 76 tokens, of captions that differ; the first 75 are learnt."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, words in enumerate((75, 76, 90, 90)):
        (folder / f"{i}.png").write_bytes((photos / f"{i:02d}.png").read_bytes())
        (folder / f"{i}.txt").write_text("red " * words)
    recipe = build(parts, folder, tmp_path / "run", data={"size": 32, "held_out": 0})
    with pytest.warns(UserWarning, match=r"2 of 3 different captions .* more than 75 tokens"):
        recipe.prepare(Accelerator(cpu=True))
    kept = recipe._tokens(recipe.data.captions(torch.arange(3)))
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


def test_contexts_are_kept_and_are_those_of_the_captions(
    parts: Path, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = CachedContexts._encode
    monkeypatch.setattr(CachedContexts, "_encode", lambda *a: (calls.append(a), encode(*a)))
    accelerator = Accelerator(cpu=True)
    plain = build(parts, arrays, tmp_path / "plain")
    plain.prepare(accelerator)
    ids = plain.batch(3, step_generator(1, 3))["ids"].long()
    with torch.no_grad():
        expected = plain.text_models[0].encoder(ids[:, 0]).context
    for _ in range(2):
        recipe = build(parts, arrays, tmp_path / "kept", keep_contexts=True)
        recipe.prepare(accelerator)
        batch = recipe.batch(3, step_generator(1, 3))
        torch.testing.assert_close(batch["context"], expected, atol=2e-3, rtol=0)
    assert len(calls) == 1  # not again for the second
    assert recipe.example(2).keys() == batch.keys()
    plain.model.conv_out.weight.data.normal_()
    recipe.model.load_state_dict(plain.model.state_dict())
    both = (r.loss(r.model, r.batch(3, step_generator(1, 3)))[0] for r in (plain, recipe))
    torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)

    changed = tmp_path / "changed"
    shutil.copytree(arrays, changed)
    text = (changed / "metadata.jsonl").read_text().replace("no 3", "no 8")
    (changed / "metadata.jsonl").write_text(text)
    build(parts, changed, tmp_path / "kept", keep_contexts=True).prepare(accelerator)
    assert len(calls) == 2


def test_the_command_says_how_far_the_encoding_is(
    parts: Path,
    arrays: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(counted, "EVERY", 0.0)
    with printed_log():
        build(parts, arrays, tmp_path, keep_contexts=True).prepare(Accelerator(cpu=True))
    lines = capsys.readouterr().out.splitlines()
    pictures = [line for line in lines if line.startswith("encoding pictures at 32 x 32 px: ")]
    assert [line.split(": ")[1].split(",")[0] for line in pictures] == [
        "8 of 20", "16 of 20", "20 of 20",
    ]  # fmt: skip
    assert pictures[-1].endswith("20 of 20, 0.0 min left")
    assert any(line.startswith("encoding captions: ") for line in lines)
    build(parts, arrays, tmp_path / "other").prepare(Accelerator(cpu=True))
    assert not capsys.readouterr().out  # the log is printed by the command alone


def test_latents_are_kept_and_belong_to_what_made_them(
    parts: Path, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    encode = CachedLatents._encode
    monkeypatch.setattr(CachedLatents, "_encode", lambda *a: (calls.append(a), encode(*a)))
    accelerator = Accelerator(cpu=True)
    batches = []
    for options in ({}, {}, {"data": {"flip": True}}, {"data": {"size": 24}}):
        recipe = build(parts, arrays, tmp_path, **options)
        recipe.prepare(accelerator)
        batches.append(recipe.batch(0, step_generator(0, 0)))
    assert len(calls) == 3  # not again for the second
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])
    assert batches[3]["x0"].shape == (8, 4, 6, 6)


def test_a_run_killed_while_encoding_goes_on(
    parts: Path, arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is encoded is kept, and the latents are those of a run that was not killed."""
    accelerator = Accelerator(cpu=True)
    build(parts, arrays, tmp_path / "whole").prepare(accelerator)
    calls = []

    def killed(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(vae, x)

    encode = AutoencoderKL.encode
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AutoencoderKL, "encode", killed)
        build(parts, arrays, tmp_path / "killed").prepare(accelerator)
    monkeypatch.setattr(AutoencoderKL, "encode", killed)
    build(parts, arrays, tmp_path / "killed").prepare(accelerator)
    assert calls == [8, 8, 8, 4]  # the first eight of twenty are not encoded again
    whole, again = (
        np.load(tmp_path / run / "latents" / "32x32.npy") for run in ("whole", "killed")
    )
    assert (whole == again).all()


def test_buckets_batch_pictures_of_like_proportions(
    parts: Path, photos: Path, tmp_path: Path
) -> None:
    buckets = {"multiple": 8, "max_ratio": 2.0}
    data = {"size": 32, "held_out": 2}
    recipe = build(parts, photos, tmp_path, buckets=buckets, data=data)
    recipe.prepare(Accelerator(cpu=True))
    sizes = bucket_sizes(32, 8, 2.0)
    seen, rows_seen = {}, set()
    for step in range(40):
        rows, x0 = recipe.latents.draw(4, step_generator(0, step))[:2]
        rows_seen |= set(rows.tolist())
        size = (x0.shape[2] * 4, x0.shape[3] * 4)
        assert {sizes[nearest_bucket(SIZES[i % 6], sizes)] for i in rows.tolist()} == {size}
        seen[size] = rows, x0
    assert rows_seen == set(recipe.data.train.tolist())
    assert len(seen) == 3 and (32, 32) in seen
    for size, (rows, x0) in seen.items():
        expected = encoded(recipe, rows, size)
        assert (x0 - expected).abs().max() < 0.03 * expected.abs().max()
    batch = recipe.batch(0, step_generator(0, 0))
    loss, _ = recipe.loss(recipe.model, batch)
    assert math.isfinite(loss.item())


def test_mirrored_latents_are_those_of_mirrored_pictures(
    parts: Path, photos: Path, tmp_path: Path
) -> None:
    recipe = build(parts, photos, tmp_path, data={"size": 32, "flip": True})
    recipe.prepare(Accelerator(cpu=True))
    rows, x0 = recipe.latents.draw(16, step_generator(0, 0))[:2]
    generator = step_generator(0, 0)
    torch.multinomial(torch.ones(18), 16, replacement=True, generator=generator)
    mirrored = torch.rand(16, generator=generator) < 0.5
    x = recipe.data.pixels(rows)
    with torch.no_grad():
        expected = recipe.vae.encode(torch.where(mirrored[:, None, None, None], x.flip(-1), x))
    assert (x0 - expected).abs().max() < 0.03 * expected.abs().max()
    assert any(mirrored) and not all(mirrored)


def test_offset_noise_adds_one_number_to_each_channel(
    parts: Path, arrays: Path, tmp_path: Path
) -> None:
    plain, offset = build(parts, arrays, tmp_path), build(parts, arrays, tmp_path, offset_noise=0.2)
    for recipe in (plain, offset):
        recipe.prepare(Accelerator(cpu=True))
    a, b = (recipe.batch(0, step_generator(0, 0)) for recipe in (plain, offset))
    added = b["noise"] - a["noise"]
    assert (added - added[:, :, :1, :1]).abs().max() < 1e-6
    assert 0.1 < float(added[:, :, 0, 0].std()) < 0.3  # 0.2, of 32 numbers
    assert all(torch.equal(a[key], b[key]) for key in ("x0", "t", "ids"))


def test_unreadable_pictures_are_left_out_of_the_latents(
    parts: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in photos.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(whole[: len(whole) // 2])
    (folder / "07.png").write_bytes(b"")
    for name, buckets in (("one", None), ("many", {"multiple": 8})):
        data = {"size": 32, "held_out": 0}
        recipe = build(parts, folder, tmp_path / name, buckets=buckets, data=data)
        with pytest.warns(UserWarning) as told:
            recipe.prepare(Accelerator(cpu=True))
        assert len(told) == 2 == len(recipe.data.skipped)
        groups = recipe.latents.groups
        rows = sorted(row for group in groups for row in group.rows.tolist())
        assert rows == [i for i in range(18) if i not in (3, 7)]
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    recipe = build(parts, folder, tmp_path / "none", data={"size": 32})
    with pytest.warns(UserWarning), pytest.raises(DataError, match="none of the 18 training pict"):
        recipe.prepare(Accelerator(cpu=True))


def test_sdxl_buckets() -> None:
    """Podell et al. 2023, appendix I lists these among others."""
    sizes = bucket_sizes(1024, 64, 4.0)
    listed = [(1024, 1024), (832, 1216), (1216, 832), (768, 1344), (896, 1152), (640, 1600)]
    assert {*listed, (512, 2048), (2048, 512)} <= set(sizes)
    for height, width in sizes:
        assert height % 64 == width % 64 == 0
        assert 0.88 * 1024**2 < height * width <= 1024**2
    assert sizes[nearest_bucket((3000, 4000), sizes)] == (896, 1152)
    assert sizes[nearest_bucket((100, 900), sizes)] == (512, 2048)


def test_options_that_do_not_go_together(parts: Path, photos: Path, tmp_path: Path) -> None:
    for options, message in (
        ({}, "set data.size, in px"),
        ({"data": {"size": 30}}, "30 × 30 px; sides must be multiples of 8 px"),
        ({"data": {"size": 32}, "buckets": {"multiple": 12}}, "multiple is 12.*multiple of 8 px"),
        ({"data": {"size": 32}, "buckets": {}}, "the size 32 is not a multiple of 64"),
        ({"data": {"size": 32}, "buckets": {"step": 8}}, "buckets.step is not an option"),
        ({"data": {"size": 32}, "buckets": {"multiple": 8, "max_ratio": 0.5}}, "max_ratio is 0.5"),
    ):
        with pytest.raises(ArgumentError, match=message):
            build(parts, photos, tmp_path, **options)
    (tmp_path / "bare").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "bare" / "a.png")
    with pytest.raises(DataError, match=r"has no captions; give it a metadata\.jsonl"):
        build(parts, tmp_path / "bare", tmp_path, data={"size": 32})


def test_zero_terminal_snr_needs_an_objective_that_learns_there() -> None:
    def scheduler(kind: str) -> DDPMScheduler:
        config = SchedulerConfig(prediction_type=kind, rescale_betas_zero_snr=True)
        return DDPMScheduler(config)

    check_zero_snr(scheduler("v_prediction"), None)
    with pytest.raises(ArgumentError, match=r"cannot be learnt.*v_prediction"):
        check_zero_snr(scheduler("epsilon"), None)
    with pytest.raises(ArgumentError, match="min_snr_gamma gives the last level"):
        check_zero_snr(scheduler("v_prediction"), 5.0)
    check_zero_snr(DDPMScheduler(SchedulerConfig()), 5.0)


def test_a_stream_cannot_be_kept(parts: Path, photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(photos / "00.png", "00.png")
    with pytest.raises(ArgumentError, match="is a stream, of which latents cannot be kept"):
        build(parts, tmp_path / "a.tar", tmp_path, data={"streaming": True, "held_out": 0})
