"""OpenVINO as the engine: the same numbers, kept on disk, and PyTorch with a word for the rest."""

import copy
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.cli.generate import main
from ldm.errors import ArgumentError
from ldm.fast.openvino import converted, library, store
from ldm.fast.openvino.library import Engine
from ldm.fast.openvino.parts import EngineUNet, HalfCall
from ldm.images.generation_info import read_generation_info
from ldm.pipeline import Pipeline
from ldm.unet import Residuals, UNet
from tests.fast.test_fast import small_unet, small_vae
from tests.helpers.networks import difference, randomize

pytest.importorskip("openvino", reason='needs OpenVINO: pip install "ldm[openvino]"')

SETTINGS = {"num_inference_steps": 2, "seed": 5, "output_type": "pt", "progress_bar": False}
SHAPES = [(1, 8, 8, 77), (2, 9, 5, 7), (3, 4, 16, 154)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of converted networks of the test's own."""
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("error", message=".*OpenVINO")
        yield


def inputs(unet: UNet, rows: int, height: int, width: int, tokens: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, unet.config.in_channels, height, width, generator=generator)
    context = torch.randn(rows, tokens, unet.config.cross_attention_dim, generator=generator)
    return x, torch.linspace(900, 5, rows), context


def far(got: Tensor, exact: Tensor) -> float:
    return difference(got.float(), exact) / exact.std().item()


def kept(cache: Path) -> dict[Path, int]:
    """The files of the cache, and when each was written."""
    return {each: each.stat().st_mtime_ns for each in cache.glob("*/*")}


def test_a_unet_of_any_shape() -> None:
    unet = small_unet()
    exact = [unet(*inputs(unet, *shape)) for shape in SHAPES]
    engine = EngineUNet(unet, Engine())
    for shape, want in zip(SHAPES, exact, strict=True):
        assert far(engine(*inputs(unet, *shape)), want) <= 1e-4
    if "BF16" not in library.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return
    unet.to(torch.bfloat16)  # the same tensors with other values
    for shape, want in zip(SHAPES, exact, strict=True):
        x, t, context = inputs(unet, *shape)
        asked = (x.bfloat16(), t, context.bfloat16())
        got = engine(*asked)
        assert got.dtype == torch.bfloat16
        assert 1e-4 < far(got, want) <= 1.5 * far(unet(*asked), want) + 1e-2


def test_compiled_models_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted, "BYTES", 0)
    engine = EngineUNet(small_unet(), Engine())
    for shape in SHAPES:
        engine(*inputs(engine.unet, *shape))
    assert len(engine.network.compiled) == converted.FEWEST
    copied = copy.deepcopy(engine)
    assert copied.network.compiled == {} and copied.unet is copied.network.network


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_pipelines(family: str, models: object) -> None:
    pipe, _ = models(family)  # type: ignore[operator]
    exact = pipe("a red car", **SETTINGS).images
    decoder = pipe.vae.decoder
    pipe.optimize(engine="openvino")
    assert "by openvino" in repr(pipe)
    assert far(pipe("a red car", **SETTINGS).images, exact) <= 1e-3
    networks = [pipe.optimized.engine.network, pipe.vae.decoder.network]
    networks += [
        n for m in pipe.text_models for n in m.encoder.text_model.encoder.networks.values()
    ]
    assert len(networks) == 2 + len(pipe.text_models)
    assert all(network.compiled for network in networks)
    pipe.optimize(False)
    assert pipe.vae.decoder is decoder and pipe.optimized.engine is None
    assert torch.equal(pipe("a red car", **SETTINGS).images, exact)


def test_an_image_and_a_copy(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exact = pipe("a", image=image, **SETTINGS).images
    pipe.optimize(engine="openvino")
    assert far(pipe("a", image=image, **SETTINGS).images, exact) <= 1e-3
    assert pipe.vae.encoder.network.compiled
    other = copy.deepcopy(pipe)
    assert not other.vae.encoder.network.compiled
    assert other.vae.encoder.network.network is other.vae.encoder.replaced[0]
    assert other.optimized.engine.unet is other.unet


def test_kept_on_disk(cache: Path) -> None:
    unet = small_unet()
    asked = inputs(unet, *SHAPES[0])
    first = EngineUNet(unet, Engine())(*asked)
    before = kept(cache)
    assert [each.name for each in sorted(before)] == ["model.bin", "model.xml"]
    again = EngineUNet(small_unet(), Engine())
    again.network.convert = None  # not called
    assert torch.equal(again(*asked), first)
    assert kept(cache) == before


def test_other_weights_are_another_network(cache: Path) -> None:
    unet = small_unet()
    asked = inputs(unet, *SHAPES[0])
    engine = EngineUNet(unet, Engine())
    engine(*asked)
    unet.conv_out.weight.mul_(2)  # in place
    assert far(engine(*asked), unet(*asked)) <= 1e-4
    layer = unet.mid_block.attentions[0].proj_in
    layer.weight = nn.Parameter(layer.weight.flip(0), requires_grad=False)  # as a LoRA does
    assert far(engine(*asked), unet(*asked)) <= 1e-4
    unet.conv_in = randomize(nn.Conv2d(4, 32, 3, padding=1), 9)
    assert far(engine(*asked), unet(*asked)) <= 1e-4
    unet.conv_in.padding_mode = "circular"
    assert far(engine(*asked), unet(*asked)) <= 1e-4
    assert len(kept(cache)) == 2 * 5


def test_the_disk_is_bounded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(file: Path) -> None:
        file.write_bytes(bytes(100))

    monkeypatch.setattr(store, "MOST", 250)
    for age, name in enumerate("abc"):
        file = store.keep(name, write)
        os.utime(file.parent, (age, age))
    assert store.find("a") is None and store.find("b") is not None
    store.keep("d", write)  # b was used after c
    assert [store.find(name) is not None for name in "abcd"] == [False, True, False, True]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "file"))
    unet = small_unet()
    asked = inputs(unet, *SHAPES[0])
    with pytest.warns(UserWarning, match="not kept for the next start"):
        got = EngineUNet(unet, Engine())(*asked)
    assert far(got, unet(*asked)) <= 1e-4


def test_what_is_computed_by_pytorch(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    plain = {
        "tiling": pipe("a", tiling=True, **SETTINGS).images,
        "deep_cache": pipe("a", deep_cache=2, **SETTINGS).images,
    }
    pipe.optimize(engine="openvino")
    parts = {"tiling": ["the U-Net", "the VAE's decoder"], "deep_cache": ["the U-Net"]}
    for name, value in (("tiling", True), ("deep_cache", 2)):
        pipe.optimized.engine.network.said.clear()
        with pytest.warns(UserWarning, match="not by OpenVINO: a picture changes") as seen:
            got = pipe("a", **{name: value}, **SETTINGS).images
        words = [str(each.message).partition(" is ")[0] for each in seen]
        assert words == parts[name]
        assert far(got, plain[name]) <= 1e-3


def test_calls_that_are_pytorchs() -> None:
    unet = small_unet()
    asked = inputs(unet, *SHAPES[0])
    engine = EngineUNet(unet, Engine())
    _, skips = unet.encode(
        asked[0], unet.embed(asked[1], *[None] * 4, dtype=torch.float32), asked[2]
    )
    steered = {"residuals": Residuals([torch.ones_like(y) for y in skips], None)}
    with pytest.warns(UserWarning, match="ControlNets add to its activations"):
        got = engine(*asked, **steered)
    assert torch.equal(got, unet(*asked, **steered))
    seen: list[nn.Module] = []
    handle = unet.mid_block.register_forward_hook(lambda layer, *_: seen.append(layer))
    with pytest.warns(UserWarning, match="hooks on its layers"):
        engine(*asked)
    handle.remove()
    assert seen == [unet.mid_block]
    with torch.enable_grad(), pytest.warns(UserWarning, match="gradients are wanted"):
        assert engine(asked[0].requires_grad_(), *asked[1:]).requires_grad
    shifted = small_unet(resnet_time_scale_shift="scale_shift")  # compiling it would crash
    with pytest.warns(UserWarning, match="adaptive group normalisation"):
        EngineUNet(shifted, Engine())(*inputs(shifted, *SHAPES[0]))


@pytest.mark.usefixtures("cache")
def test_what_openvino_refuses_is_computed_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = small_unet()
    asked = inputs(unet, *SHAPES[0])
    engine = EngineUNet(unet, Engine())

    def fail(*_: object) -> None:
        raise RuntimeError("Exception from somewhere\nno such operation")

    monkeypatch.setattr(engine.network, "convert", fail)
    with pytest.warns(UserWarning, match="OpenVINO says: no such operation"):
        assert torch.equal(engine(*asked), unet(*asked))


def test_a_decoder_on_its_own() -> None:
    decoder = small_vae().decoder
    call = converted.Converted("it", decoder, HalfCall(decoder), Engine(), [(1, 4, 16, 16)])
    z = torch.randn(1, 4, 7, 9, generator=torch.Generator().manual_seed(0))
    (got,) = call(z)
    assert far(got, decoder(z)) <= 1e-4


def test_what_does_not_go_together(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder)
    for name in ("compile", "int8"):
        with pytest.raises(ArgumentError, match=f"engine and {name} exclude each other"):
            pipe.optimize(engine="openvino", **{name: True})
    with pytest.raises(ArgumentError, match="engine 'tensorrt' is unknown; expected torch"):
        pipe.optimize(engine="tensorrt")
    with pytest.raises(ArgumentError, match="sees no such device here; it sees CPU"):
        pipe.optimize(engine="openvino:TPU")
    alone, engine = (pipe.memory_needed(), pipe.optimize(engine="openvino").memory_needed())
    assert engine.weights > 2 * alone.weights


def test_without_openvino(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.from_pretrained(folder)
    library.load.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ArgumentError, match=r'pip install "ldm\[openvino\]"'):
        pipe.optimize(engine="openvino")
    library.load.cache_clear()


def test_the_command_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = ["--model", str(folder), "--steps", "2", "--seed", "3"]
    assert main(["a", *draw, "--engine", "openvino", "-o", "a.png"]) == 0
    assert read_generation_info(Path("a.png")).engine == "openvino"
    assert main(["--from", "a.png", "--model", str(folder), "-o", "b.png"]) == 0
    assert read_generation_info(Path("b.png")).engine == "openvino"
    assert np.array_equal(Image.open("a.png"), Image.open("b.png"))
    again = ["--from", "a.png", "--model", str(folder), "--engine", "torch", "-o", "c.png"]
    assert main(again) == 0
    assert read_generation_info(Path("c.png")).engine is None
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["a", *draw, "--engine", "onnx", "-o", "d.png"])
    assert "engine 'onnx' is unknown" in capsys.readouterr().err
