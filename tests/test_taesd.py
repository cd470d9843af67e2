"""TAESD: equal to diffusers' AutoencoderTiny, from every file that people have of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm.checkpoints.header import read_header
from ldm.cli import convert, generate, info
from ldm.config import TAESDConfig, read_json, write_json
from ldm.errors import ArgumentError, CheckpointError
from ldm.hires import hires_fix
from ldm.pipeline import Pipeline
from ldm.taesd import AutoencoderTiny
from tests.helpers.families import for_task
from tests.helpers.networks import difference, ours_like, randomize
from tests.helpers.pictures import AS_DIFFUSERS, assert_same, draw, draw_theirs, generator

diffusers = pytest.importorskip("diffusers")

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return randomize(diffusers.AutoencoderTiny(), 4)


@pytest.fixture(scope="module")
def ours(theirs: Any) -> AutoencoderTiny:
    vae = ours_like(theirs, AutoencoderTiny, TAESDConfig())
    assert isinstance(vae, AutoencoderTiny)
    return vae


def coder(tensors: Tensors, name: str) -> Tensors:
    """The tensors of one coder as the original code numbers them: a clamp is decoder's layer 0."""
    found = {}
    for key, value in tensors.items():
        part, _, number, rest = key.split(".", 3)
        if part == name:
            found[f"{int(number) + (name == 'decoder')}.{rest}"] = value.clone()
    return found


def joined(tensors: Tensors, prefix: str) -> Tensors:
    return {
        f"{prefix}{name}.{key}": value
        for name in ("encoder", "decoder")
        for key, value in coder(tensors, name).items()
    }


@pytest.fixture
def files(theirs: Any, tmp_path: Path) -> Path:
    """A folder with every form of one TAESD, each in a folder of its own."""
    tensors = theirs.state_dict()
    theirs.save_pretrained(tmp_path / "folder")
    for name in ("pair", "decoder", "encoder"):
        (tmp_path / name).mkdir()
    save_file(coder(tensors, "encoder"), tmp_path / "pair" / "taesd_encoder.safetensors")
    save_file(coder(tensors, "decoder"), tmp_path / "pair" / "taesd_decoder.safetensors")
    torch.save(coder(tensors, "decoder"), tmp_path / "decoder" / "taesdxl_decoder.pth")
    torch.save(coder(tensors, "encoder"), tmp_path / "encoder" / "taesdxl_encoder.pth")
    save_file(joined(tensors, ""), tmp_path / "both.safetensors")
    save_file(joined(tensors, "taesd_"), tmp_path / "comfyui.safetensors")
    return tmp_path


WHOLE = [
    *("folder", "folder/diffusion_pytorch_model.safetensors", "both.safetensors"),
    *("comfyui.safetensors", "pair/taesd_decoder.safetensors", "pair/taesd_encoder.safetensors"),
]


@pytest.mark.parity
@pytest.mark.parametrize("size", [(2, 64, 64), (1, 8, 8), (3, 43, 65)])
def test_coders(ours: AutoencoderTiny, theirs: Any, size: tuple[int, int, int]) -> None:
    """Within 1e-5, also of sides that 8 does not divide, and of latents past the clamp."""
    count, height, width = size
    x = torch.rand(count, 3, height, width, generator=generator(1)) * 2 - 1
    z = ours.encode(x)
    assert difference(z, theirs.encode(x).latents) < 1e-5
    assert z.shape == (count, 4, -(-height // 8), -(-width // 8))
    z = 4 * torch.randn(z.shape, generator=generator(2))
    assert difference(ours.decode(z), theirs.decode(z).sample) < 1e-5


@pytest.mark.parity
def test_a_scaling_factor_and_other_sizes() -> None:
    """Of a config: as diffusers' pipelines apply it; narrower, and with three levels."""
    settings = {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (16, 16, 16),
        "num_encoder_blocks": (1, 0, 2),
        "num_decoder_blocks": (2, 1, 1),
        "scaling_factor": 0.5,
    }
    theirs = randomize(diffusers.AutoencoderTiny(**settings), 2)
    config = TAESDConfig.from_dict(dict(theirs.config))
    assert config.scale == 4
    ours = ours_like(theirs, AutoencoderTiny, config)
    x = torch.rand(1, 3, 16, 16, generator=generator(1)) * 2 - 1
    assert difference(ours.encode(x), theirs.encode(x).latents * 0.5) < 1e-5
    z = torch.randn(1, 4, 4, 4, generator=generator(1))
    assert difference(ours.decode(z), theirs.decode(z / 0.5).sample) < 1e-5


@pytest.mark.parametrize("form", WHOLE)
def test_every_file(ours: AutoencoderTiny, folder: Path, files: Path, form: str) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu", vae=files / form)
    found, want = pipe.vae.state_dict(), ours.state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[key], value) for key, value in want.items())


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("task", ["text", "image", "inpaint"])
def test_pictures(
    models: Any, theirs: Any, picture: Any, mask: Any, files: Path, family: str, task: str
) -> None:
    """Those of diffusers' pipelines with this VAE; the encoder draws no noise."""
    pipe, other = models(family)
    other = for_task(other, task)
    before, other.vae = other.vae, theirs
    ours = Pipeline(**pipe.parts | {"vae": Pipeline.from_pretrained(files_model(files)).vae})
    arguments: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0}
    arguments |= {"height": 40, "width": 64} if task != "image" else {}
    if task != "text":
        arguments |= {"image": picture, "strength": 0.6}
    if task == "inpaint":
        arguments["mask_image"] = mask
    want = draw_theirs(other, generator=generator(3), **arguments)
    other.vae = before
    assert_same(
        draw(ours, seed=3, **arguments, **(AS_DIFFUSERS if task == "inpaint" else {})), want
    )


def files_model(files: Path) -> Path:
    """A whole folder whose vae/ is the TAESD, as diffusers saves it."""
    from tests.helpers.families import sd

    path = files / "model"
    if not path.exists():
        sd(vae=diffusers.AutoencoderTiny.from_pretrained(files / "folder")).save_pretrained(path)
    return path


def test_a_whole_folder_is_loaded_and_kept(ours: AutoencoderTiny, files: Path) -> None:
    pipe = Pipeline.from_pretrained(files_model(files), device="cpu")
    assert isinstance(pipe.vae, AutoencoderTiny)
    pipe.save_pretrained(files / "again")
    again = diffusers.DiffusionPipeline.from_pretrained(files / "again")
    assert type(again.vae) is diffusers.AutoencoderTiny
    z = torch.randn(1, 4, 3, 3, generator=generator(0))
    assert difference(ours.decode(z), again.vae.decode(z).sample) < 1e-5
    with pytest.raises(CheckpointError, match="has a TAESD, for which there is no layout in a si"):
        # of a known family, so that the VAE is what does not fit
        pipe.unet.config = type(pipe.unet.config)(
            **{**vars(pipe.unet.config), "cross_attention_dim": 768}
        )
        pipe.save_single_file(files / "one.safetensors")


def test_a_vae_in_its_place(folder: Path, files: Path) -> None:
    """Of a model with a TAESD: a folder says what the VAE is like; a file does not."""
    model = files_model(files)
    pipe = Pipeline.from_pretrained(model, device="cpu", vae=folder / "vae")
    assert type(pipe.vae).__name__ == "AutoencoderKL"
    Pipeline.from_pretrained(model, device="cpu", vae=files / "both.safetensors")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(CheckpointError, match=r"sizes are not known.*folder with a config\.json"):
        Pipeline.from_pretrained(model, device="cpu", vae=file)


def test_a_decoder_alone(folder: Path, files: Path, picture: Image.Image) -> None:
    """It draws from texts; what needs the encoder is refused before anything is computed."""
    pipe = Pipeline.from_pretrained(folder, device="cpu", vae=files / "decoder/taesdxl_decoder.pth")
    whole = Pipeline.from_pretrained(folder, device="cpu", vae=files / "both.safetensors")
    small = {"num_inference_steps": 2, "output_type": "pt", "seed": 1}
    assert torch.equal(pipe("x", **small).images, whole("x", **small).images)
    message = "the decoder of a TAESD alone, and an image is to be encoded; put its encoder"
    with pytest.raises(ArgumentError, match=message):
        pipe.stream("x", image=picture)
    with pytest.raises(ArgumentError, match=message):
        hires_fix(pipe, "x")
    with pytest.raises(ArgumentError, match=message):
        pipe.vae.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(CheckpointError, match="decoder of a TAESD alone, with which other prog"):
        pipe.save_pretrained(files / "out")
    assert not (files / "out").exists()


def test_seamless_tiles(ours: AutoencoderTiny, folder: Path, files: Path) -> None:
    """Rolling the latents rolls the picture, as with the other VAE."""
    from ldm.techniques.tiling import seamless

    z = torch.randn(1, 4, 6, 5, generator=generator(0))
    around = seamless(ours)
    want = around.decode(z).roll((8, 16), (2, 3))
    assert difference(around.decode(z.roll((1, 2), (2, 3))), want) < 1e-5


@pytest.mark.parametrize("optimize", [False, True])
def test_it_computes_faster_with_the_same_result(
    folder: Path, files: Path, picture: Image.Image, optimize: bool
) -> None:
    pipe = Pipeline.from_pretrained(folder, device="cpu", vae=files / "folder")
    arguments = {"image": picture, "seed": 1, "num_inference_steps": 2, "output_type": "pt"}
    want = pipe("x", **arguments).images
    assert difference(pipe.optimize(optimize)("x", **arguments).images, want) < 1e-4
    half = Pipeline.from_pretrained(folder, device="cpu", vae=files / "folder", dtype="bfloat16")
    assert difference(half("x", **arguments).images, want) < 0.1


def test_previews(folder: Path, files: Path, theirs: Any) -> None:
    """A preview_vae decodes them; a TAESD as the VAE is its own."""
    plain = Pipeline.from_pretrained(folder, device="cpu")
    pipe = Pipeline.from_pretrained(folder, device="cpu", preview_vae=files / "comfyui.safetensors")
    z = torch.randn(2, 4, 3, 5, generator=generator(0))
    want = (theirs.decode(z).sample / 2 + 0.5).clamp(0, 1)
    assert difference(pipe.preview(z), want) < 1e-5
    assert torch.equal(pipe.decode(z), plain.decode(z))
    decoder = files / "decoder" / "taesdxl_decoder.pth"
    pipe = Pipeline.from_pretrained(folder, device="cpu", vae=decoder)
    assert difference(pipe.preview(z), want) < 1e-5


def channels(tensors: Tensors, count: int) -> Tensors:
    first = tensors["decoder.layers.0.weight"]
    last = tensors["encoder.layers.14.weight"]
    return tensors | {
        "decoder.layers.0.weight": torch.zeros(64, count, *first.shape[2:]),
        "encoder.layers.14.weight": torch.zeros(count, *last.shape[1:]),
        "encoder.layers.14.bias": torch.zeros(count),
    }


BAD: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "TAEF1": (
        lambda t: channels(t, 16),
        r"is a TAESD of 16 latent channels \(of Stable Diffusion 3, Flux or the like\); this "
        "model has 4",
    ),
    "TAEF1's decoder": (lambda t: coder(channels(t, 16), "decoder"), "TAESD of 16 latent"),
    "TAESD3's encoder": (lambda t: coder(channels(t, 16), "encoder"), "TAESD of 16 latent"),
    "TAESANA": (lambda t: channels(t, 32), "TAESD of 32 latent channels; this model has 4"),
    "encoder alone": (
        lambda t: coder(t, "encoder"),
        "encoder of a TAESD alone, which cannot make pictures; give its decoder",
    ),
    "other layers": (
        lambda t: t | {"decoder.layers.3.pool.0.weight": torch.zeros(1)},
        "has unknown decoder.layers.3.pool.0.weight: it is a TAESD of another architecture",
    ),
    "a layer lost": (
        lambda t: {k: v for k, v in t.items() if k != "decoder.layers.18.bias"},
        "lacks decoder.layers.18.bias: it is a TAESD of another architecture, or damaged",
    ),
    "another shape": (
        lambda t: t | {"decoder.layers.3.conv.0.weight": torch.zeros(32, 64, 3, 3)},
        "has other shapes: decoder.layers.3.conv.0.weight",
    ),
    "a shape of nothing": (
        lambda t: t | {"decoder.layers.0.weight": torch.zeros(())},
        "has other shapes: decoder.layers.0.weight",
    ),
    "a long number": (
        lambda t: t | {"decoder.layers." + "9" * 900 + ".weight": torch.zeros(1)},
        "has unknown",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", ["vae", "preview_vae"])
def test_other_files(theirs: Any, folder: Path, tmp_path: Path, name: str, place: str) -> None:
    change, message = BAD[name]
    path = tmp_path / "x.safetensors"
    save_file({k: v.contiguous() for k, v in change(theirs.state_dict()).items()}, path)
    with pytest.raises(CheckpointError, match=message):
        Pipeline.from_pretrained(folder, device="cpu", **{place: path})


def test_other_vaes_and_missing_files(folder: Path, files: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    for path in (file, folder / "vae"):
        with pytest.raises(CheckpointError, match="is no TAESD; a preview_vae must be one"):
            Pipeline.from_pretrained(folder, device="cpu", preview_vae=path)
    for place in ("vae", "preview_vae"):
        with pytest.raises(CheckpointError, match="nowhere does not exist; give a VAE's folder or"):
            Pipeline.from_pretrained(folder, device="cpu", **{place: files / "nowhere"})
    wide = diffusers.AutoencoderKL(latent_channels=16, norm_num_groups=8,
                                   block_out_channels=(8,) * 4,
                                   down_block_types=["DownEncoderBlock2D"] * 4,
                                   up_block_types=["UpDecoderBlock2D"] * 4)  # fmt: skip
    wide.save_pretrained(files / "wide")
    weights = files / "wide" / "diffusion_pytorch_model.safetensors"
    for path in (files / "wide", weights):
        with pytest.raises(CheckpointError, match=r"is a VAE of 16 latent channels.*this model"):
            Pipeline.from_pretrained(folder, device="cpu", vae=path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("_class_name", "AsymmetricAutoencoderKL", "of a AsymmetricAutoencoderKL; only Autoenc"),
        ("_class_name", ["x"], "only AutoencoderKL and AutoencoderTiny"),
        ("act_fn", "silu", "act_fn is 'silu'"),
        ("upsample_fn", "bilinear", "upsample_fn is 'bilinear'"),
        ("shift_factor", 0.1, "shift_factor is 0.1"),
        ("latent_channels", 16, "has other shapes"),
        ("num_encoder_blocks", [1, 3], "num_encoder_blocks and encoder_block_out_channels have 2"),
        ("num_decoder_blocks", [99, 99, 9, 9], "at most 100"),
        ("num_decoder_blocks", [1 << 19], "4 levels"),
        ("decoder_block_out_channels", [64, 64, 64, 32], "must be of one width"),
        ("decoder_block_out_channels", "x", "decoder_block_out_channels is 'x'"),
    ],
)
def test_broken_configs(folder: Path, files: Path, key: str, value: object, message: str) -> None:
    config = files / "folder" / "config.json"
    write_json(config, read_json(config) | {key: value})
    with pytest.raises(CheckpointError, match=message):
        Pipeline.from_pretrained(folder, device="cpu", vae=files / "folder")


def test_the_commands(folder: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--vae and --preview-vae draw; what they were drawn with stands in the picture."""
    pair, out = files / "pair" / "taesd_decoder.safetensors", files / "a.png"
    small = ["-m", str(folder), "--steps", "2", "--seed", "1", "--quiet"]
    assert generate.main(["x", *small, "--vae", str(pair), "-o", str(out)]) == 0
    with Image.open(out) as image:
        assert "VAE: taesd_decoder" in image.text["parameters"]
        drawn = np.asarray(image)
    again = ["--from", str(out), *small[:2], "--vae", str(pair), "-o", str(files / "b.png")]
    assert generate.main(again) == 0
    with Image.open(files / "b.png") as image:
        assert (np.asarray(image) == drawn).all()
    shown = ["--animation", "webp", "--preview-vae", str(pair), "-o", str(files / "c.png")]
    assert generate.main(["x", *small, *shown]) == 0
    assert (files / "c-animation.webp").exists()
    capsys.readouterr()
    assert generate.main(["x", *small, "--preview-vae", str(pair), "-o", str(files / "d.png")]) == 2
    assert "--preview-vae draws the frames of an --animation; give" in capsys.readouterr().err
    assert info.main([str(pair)]) == 0
    assert "TAESD" in capsys.readouterr().out
    assert len(read_header(pair).tensors) == len(coder(AutoencoderTiny(TAESDConfig()).state_dict(),
                                                       "decoder"))  # fmt: skip
    assert convert.main([str(folder), str(files / "out"), "--vae", str(pair)]) == 0
    assert read_json(files / "out" / "vae" / "config.json")["_class_name"] == "AutoencoderTiny"
    assert convert.main([str(folder), str(files / "x.safetensors"), "--vae", str(pair)]) == 1
    assert not (files / "x.safetensors").exists()


def test_pixels_have_no_preview_vae(files: Path) -> None:
    from ldm.config import SchedulerConfig, UNetConfig
    from ldm.scheduler import DDPMScheduler
    from ldm.unet import UNet

    theirs = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=["DownBlock2D"] * 2, up_block_types=["UpBlock2D"] * 2, add_attention=True,
    )  # fmt: skip
    config = UNetConfig.from_dict(dict(theirs.config) | {"_class_name": "UNet2DModel"})
    pipe = Pipeline(None, None, None, UNet(config), DDPMScheduler(SchedulerConfig()))
    with pytest.raises(ArgumentError, match="draws pixels, which are their own preview"):
        pipe.load_preview_vae(files / "both.safetensors")
