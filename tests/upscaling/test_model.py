"""Models that enlarge pictures: what spandrel computes of a file, in tiles, of any picture."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm.errors import ArgumentError, CheckpointError
from ldm.upscaling import load_upscaler
from ldm.upscaling import model as module
from ldm.upscaling.tiles import spans, upscale_tiles
from tests.helpers.networks import difference
from tests.helpers.upscalers import esrgan, new_names, spandrel, write_upscaler


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_upscaler(tmp_path_factory.mktemp("models") / "2x-tiny.safetensors")


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    pixels = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parity
def test_a_picture_is_spandrels(file: Path) -> None:
    """Rounded to 8 bits: half a step of 255 at most from spandrel's own call of its own loader."""
    image = noise(20, 13)
    own = spandrel().ModelLoader("cpu").load_from_file(file)
    x = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)[None]
    want = own(x)[0].permute(1, 2, 0).numpy()
    got = np.asarray(load_upscaler(file, device="cpu")(image, 40, 26)) / 255
    assert np.abs(got - want).max() <= 0.5 / 255 + 1e-6
    assert want.std() > 0.01


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["SwinIR", "Compact", "DAT", "DnCNN"])
def test_other_architectures(tmp_path: Path, kind: str) -> None:
    """With whole numbers among their tensors, sizes of their own, and scale 1."""
    spandrel()
    architectures = importlib.import_module(f"spandrel.architectures.{kind}")
    small: dict[str, Any] = {
        "SwinIR": {
            "img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8,
            "upscale": 2, "upsampler": "pixelshuffle", "mlp_ratio": 2.0,
        },
        "Compact": {"num_feat": 8, "num_conv": 2, "upscale": 2, "act_type": "prelu"},
        "DAT": {
            "img_size": 16, "embed_dim": 32, "depth": [2], "num_heads": [2], "upscale": 2,
            "split_size": [2, 4], "expansion_factor": 2.0, "upsampler": "pixelshuffle",
        },
        "DnCNN": {"in_nc": 3, "out_nc": 3, "nc": 8, "nb": 17, "act_mode": "R"},
    }[kind]  # fmt: skip
    name = "SRVGGNetCompact" if hasattr(architectures, "SRVGGNetCompact") else kind
    torch.manual_seed(0)
    torch.save(getattr(architectures, name)(**small).state_dict(), tmp_path / "x.pth")
    own = spandrel().ModelLoader("cpu").load_from_file(tmp_path / "x.pth")
    upscaler = load_upscaler(tmp_path / "x.pth", device="cpu")
    x = torch.rand(1, 3, 20, 21, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upscaler.compute(x), own(x))
    assert upscaler.scale == own.scale == (1 if kind == "DnCNN" else 2)
    assert upscaler(noise(20, 21), 30, 30).size == (30, 30)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("ending", "wrapped"),
    [("safetensors", None), ("pth", None), ("pth", "params_ema"), ("pth", "params")],
)
@pytest.mark.parametrize("names", ["old", "new"])
def test_files_of_any_layout(tmp_path: Path, names: str, ending: str, wrapped: str | None) -> None:
    old = esrgan(scale=4)
    state: Any = old if names == "old" else new_names(old)
    path = tmp_path / f"x.{ending}"
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save({wrapped: state} if wrapped else state, path)
    upscaler = load_upscaler(path, device="cpu")
    assert (upscaler.name, upscaler.scale) == ("x", 4)
    own = spandrel().ModelLoader("cpu").load_from_state_dict(old)
    x = torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upscaler.compute(x), own(x))


def test_half_precision_is_computed_in_float32(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in esrgan().items()}
    save_file(state, tmp_path / "x.safetensors")
    network = load_upscaler(tmp_path / "x.safetensors").network
    assert {value.dtype for value in network.model.state_dict().values()} == {torch.float32}


def test_tiles_equal_the_whole(file: Path) -> None:
    """17 convolutions of 3x3 before the enlargement and 3 after it see 18.5 pixels around."""
    compute = load_upscaler(file, device="cpu").compute
    x = torch.rand(1, 3, 70, 83, generator=torch.Generator().manual_seed(0))
    whole = compute(x)

    def tiled(overlap: int) -> torch.Tensor:
        made = torch.full_like(whole, torch.nan)
        parts = list(upscale_tiles(compute, x, 2, tile=32, overlap=overlap))
        assert len(parts) == 9
        for top, left, part in parts:
            made[..., top : top + part.shape[2], left : left + part.shape[3]] = part
        return made

    assert difference(tiled(19), whole) < 1e-4
    assert not difference(tiled(1), whole) < 1e-4


@pytest.mark.parametrize(("side", "tile"), [(1, 8), (8, 8), (9, 8), (25, 8), (100, None)])
def test_spans_cover_a_side(side: int, tile: int | None) -> None:
    parts = spans(side, tile)
    assert [i for start, end in parts for i in range(start, end)] == list(range(side))
    assert max(end - start for start, end in parts) <= (tile or side)


def test_a_large_picture_is_computed_in_tiles(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = load_upscaler(file, device="cpu")
    whole = upscaler(noise(90, 40), 180, 80)
    seen = []
    compute = upscaler.compute
    monkeypatch.setattr(upscaler, "compute", lambda x: (seen.append(x.shape), compute(x))[1])
    monkeypatch.setattr(upscaler, "tile", 30)
    tiled = upscaler(noise(90, 40), 180, 80)
    assert len(seen) == 6 and max(max(shape[2:]) for shape in seen) <= 30 + 2 * 24
    assert np.abs(np.asarray(tiled, int) - np.asarray(whole, int)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16", "CMYK"])
def test_pictures_of_any_mode(tmp_path: Path, mode: str, channels: int) -> None:
    upscaler = load_upscaler(write_upscaler(tmp_path / "x.safetensors", channels=channels))
    image = noise(12, 9, mode) if mode in ("L", "LA", "RGB", "RGBA") else noise(12, 9)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(noise(12, 9, "L")).astype(np.uint16) * 257)
    large = upscaler(image.convert(mode) if image.mode != mode else image, 24, 18)
    assert large.size == (24, 18)
    assert large.mode == {"P": "RGB", "CMYK": "RGB", "1": "L", "I;16": "L"}.get(mode, mode)
    if mode.endswith("A"):
        want = image.getchannel("A").resize((24, 18), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(large.getchannel("A")), np.asarray(want))


@pytest.mark.parametrize(
    ("size", "passes"), [((24, 18), 1), ((30, 18), 2), ((100, 20), 4), ((5, 4), 1), ((12, 9), 1)]
)
def test_any_size(file: Path, size: tuple[int, int], passes: int) -> None:
    """The model runs until both sides are reached, at least once; Lanczos fits the rest."""
    upscaler = load_upscaler(file, device="cpu")
    image = want = noise(12, 9)
    for _ in range(passes):
        want = upscaler.enlarge(want)
    want = want.resize(size, Image.Resampling.LANCZOS)
    got = upscaler(image, *size)
    assert got.size == size and np.array_equal(np.asarray(got), np.asarray(want))


def test_the_smallest_picture(file: Path) -> None:
    assert load_upscaler(file)(Image.new("RGB", (1, 1), "red"), 3, 2).size == (3, 2)


def test_sizes_that_are_refused(file: Path) -> None:
    upscaler = load_upscaler(file)
    with pytest.raises(ArgumentError, match="width is 0; it must be a positive whole number"):
        upscaler(noise(8, 8), 0, 8)
    with pytest.raises(ArgumentError, match="the size is 20000x20000; at most 256 megapixels"):
        upscaler(noise(8, 8), 20000, 20000)
    with pytest.raises(ArgumentError, match="2x-tiny enlarges 2 times at once, 8x8 to 65536x65536"):
        upscaler(noise(8, 8), 33000, 1)


# What is no upscaler


def refusal(path: Path) -> str:
    with pytest.raises((CheckpointError, ArgumentError)) as caught:
        load_upscaler(path, device="cpu")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_files_that_are_no_upscalers(tmp_path: Path, ending: str) -> None:
    spandrel()
    path = tmp_path / f"x{ending}"

    def write(state: Any) -> None:
        save_file(state, path) if ending == ".safetensors" else torch.save(state, path)

    path.write_bytes(b"")
    assert "get it again" in refusal(path)
    path.write_bytes(b"\x80\x02nonsense" * 9)
    assert refusal(path)
    write({"lora_unet_x.lora_up.weight": torch.zeros(4, 4)})
    assert "is no upscaler, or of an architecture that spandrel" in refusal(path)
    state = esrgan()
    write({**state, "model.3.weight": torch.zeros(4, 4, 3, 3)})
    assert "is no upscaler that spandrel" in refusal(path)
    write({**state, "model.1.sub.999999999.weight": torch.zeros(1)})
    assert "names a layer model.1.sub.999999999.weight of no network" in refusal(path)
    write({**state, "model.3.weight": torch.full_like(state["model.3.weight"], torch.nan)})
    assert "model.3.weight holds NaN or infinity" in refusal(path)


class Attack:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("attacked"),))


def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spandrel()
    monkeypatch.chdir(tmp_path)
    torch.save({**esrgan(), "x": Attack()}, tmp_path / "x.pth")
    assert "run" in refusal(tmp_path / "x.pth")
    assert not Path("attacked").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_purpose": "FaceSR"}, "is ESRGAN, a model for FaceSR; give one for super-resolution"),
        ({"input_channels": 4}, "is ESRGAN that reads 4 channels and writes 3; give a model of"),
    ],
)
def test_models_for_other_purposes(file: Path, change: dict[str, Any], message: str) -> None:
    network = load_upscaler(file).network
    vars(network).update(change)
    with pytest.raises(ArgumentError, match=message):
        module.check_purpose(file, network)


def test_without_spandrel(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    monkeypatch.delitem(sys.modules, "spandrel")
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(ArgumentError, match=r"need the package spandrel: pip install 'ldm\[upscal"):
        load_upscaler(file)


def test_beside_a_torchvision_that_does_not_fit(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spandrel.py").write_text('raise RuntimeError("operator torchvision::nms")')
    monkeypatch.delitem(sys.modules, "spandrel")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ArgumentError, match=r"cannot be imported \(operator torchvision::nms\); in"
    ):
        load_upscaler(file)


def test_pixels_that_are_not_finite(file: Path) -> None:
    upscaler = load_upscaler(file, device="cpu")
    upscaler.network.model.model[0].bias.data.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="2x-tiny made pixels that are NaN or infinite"):
        upscaler(noise(8, 8), 16, 16)
