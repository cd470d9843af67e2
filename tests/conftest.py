"""What the tests share: their surroundings, small random models, a picture and a mask."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch loads MKL: else its products depend, on some processors, on where in memory the
# weights lie, which is not the same for a file that is mapped and for a model that was just made.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoints.assets import asset_path
from ldm.loading import devices
from ldm.pipeline import Pipeline

pytest.register_assert_rewrite("tests.helpers.networks", "tests.helpers.pictures")
from tests.helpers.garbage import pass_over_modules  # noqa: E402 (after their rewriting)
from tests.helpers.networks import randomize  # noqa: E402
from tests.helpers.surroundings import own_environment  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread in each process, and in what it starts
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
# Read when diffusers and transformers are first imported, which only parity tests do.
for library in ("DIFFUSERS", "TRANSFORMERS"):
    os.environ.setdefault(f"{library}_VERBOSITY", "error")
# As for a user without a network: an empty hub cache.
HUB = tempfile.TemporaryDirectory(prefix="ldm-hub-")
os.environ["HF_HOME"] = HUB.name
# … without settings of ldm's own, and without what it keeps.
os.environ["XDG_CONFIG_HOME"] = os.environ["XDG_CACHE_HOME"] = HUB.name
for variable in [name for name in os.environ if name.startswith("LDM_")]:
    del os.environ[variable]
os.environ["LDM_CACHE"] = HUB.name


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    pass_over_modules()
    with own_environment():
        yield


@pytest.fixture(scope="session", autouse=True)
def float32_by_default() -> Iterator[None]:
    """The same numbers on processors with and without bfloat16; commands in their own processes
    choose for themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "native_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test may need the network, or stand in the checkout; this machine's servers are none."""

    def loopback_only(function: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            host = args[place] if place < len(args) else kwargs.get("host")
            host = host[0] if isinstance(host, tuple) else host
            if host not in ("127.0.0.1", "::1", "localhost"):
                raise OSError("the network is blocked")
            return function(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, loopback_only(getattr(socket.socket, name), 1))
        patch.setattr(socket, "getaddrinfo", loopback_only(socket.getaddrinfo, 0))
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        yield
    assert not list(Path(HUB.name).rglob("models--*"))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Pipeline, Any]]:
    """(ours, diffusers' pipeline) of a family, both from one folder."""
    from tests.helpers.families import FAMILIES

    made: dict[str, tuple[Pipeline, Any]] = {}

    def get(family: str) -> tuple[Pipeline, Any]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            theirs = FAMILIES[family]()
            theirs.save_pretrained(folder)
            made[family] = Pipeline.from_pretrained(folder, device="cpu"), theirs
        return made[family]

    return get


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion of 64x64 pictures, saved by diffusers. Copy it to change it."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        sample_size=64,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=8,
    )
    text_config = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    folder = tmp_path_factory.mktemp("model")
    diffusers.StableDiffusionPipeline(
        vae=randomize(vae, 1),
        text_encoder=randomize(transformers.CLIPTextModel(text_config), 2),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer"),
        unet=randomize(unet, 3),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 150, 64)[None, :, None]
    return Image.fromarray((slope + rng.integers(0, 100, (40, 64, 3))).astype(np.uint8))


@pytest.fixture(scope="session")
def mask() -> Image.Image:
    values = np.zeros((40, 64), np.uint8)
    values[5:33, 13:41] = 255
    values[20:, 30:] = 128
    values[30:36, 2:9] = 126
    return Image.fromarray(values)
