"""IP-Adapters with everything else, what they cost, and input that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.control.image_sources import save_image_embeds
from ldm.control.ip_adapter import IPAdapter
from ldm.errors import ArgumentError, CheckpointError, LDMError
from ldm.fast.graphs import Graphs
from ldm.fast.optimize import Optimized
from ldm.fast.recorder import Recording
from ldm.hires import hires_fix
from ldm.loading.ip_adapter import save_ip_adapter
from ldm.pipeline import Pipeline
from ldm.refiner import Ensemble
from ldm.techniques.attention_maps import AttentionMaps
from tests.helpers.controlnets import controlnet_for
from tests.helpers.ip_adapters import adapter_tensors, image_encoder, save_adapter
from tests.helpers.networks import difference

SETTINGS: dict[str, Any] = {
    "num_inference_steps": 4, "height": 40, "width": 72, "seed": 5, "guidance_scale": 3.0,
    "output_type": "pt",
}  # fmt: skip


def shown(seed: int = 1, size: tuple[int, int] = (50, 41)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.fixture(scope="module")
def base(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SD's folder; beside it, IP-Adapters and an encoder as in h94/IP-Adapter."""
    ours, theirs = models("sd")
    folder = tmp_path_factory.mktemp("base")
    theirs.save_pretrained(folder / "sd")
    image_encoder(folder / "models" / "image_encoder")
    image_encoder(folder / "sdxl_models" / "image_encoder", projection_dim=28, hidden_size=36)
    for name, kind in (("base.bin", "base"), ("plus.safetensors", "plus")):
        save_adapter(folder / "models" / name, adapter_tensors(ours.unet.config, kind))
    save_adapter(folder / "sdxl_models" / "vit-h.bin", adapter_tensors(ours.unet.config, "plus"))
    return folder


@pytest.fixture
def bare(base: Path) -> Pipeline:
    return Pipeline.from_pretrained(base / "sd", device="cpu")


@pytest.fixture
def pipe(base: Path, bare: Pipeline) -> Pipeline:
    bare.load_ip_adapter(base / "models" / "plus.safetensors")
    return bare


def drawn(pipe: Any, prompt: Any = "a red car", **more: Any) -> torch.Tensor:
    return pipe(prompt, **(SETTINGS | more)).images


def test_put_on_and_taken_off(base: Path, bare: Pipeline) -> None:
    pipe = bare
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    before = drawn(pipe)
    assert pipe.load_ip_adapter(base / "models" / "plus.safetensors") == "plus"
    assert pipe.load_ip_adapter(base / "models" / "base.bin", name="colours") == "colours"
    assert pipe.load_ip_adapter(base / "models" / "base.bin") == "base"
    three = drawn(pipe, ip_adapter_image=[shown(1), shown(2), shown(3)])
    assert difference(three, before) > 1e-2
    assert torch.equal(drawn(pipe, ip_adapter_scale=0.0), before)
    assert repr(pipe).count("IP-Adapters: plus, colours, base") == 1
    with pytest.raises(ArgumentError, match="there is an IP-Adapter 'base' already"):
        pipe.load_ip_adapter(base / "models" / "base.bin", name="base")
    pipe.unload_ip_adapter("base")
    assert list(pipe.ip_adapters) == ["plus", "colours"]
    with pytest.raises(ArgumentError, match="no IP-Adapter named 'base' is loaded; there are: pl"):
        pipe.unload_ip_adapter("base")
    pipe.unload_ip_adapter()
    assert torch.equal(drawn(pipe), before)
    assert all(torch.equal(weights[name], value) for name, value in pipe.unet.state_dict().items())


def test_diffusers_call(base: Path, bare: Pipeline) -> None:
    """Lists of one repository, and the encoder's folder named within it."""
    names = bare.load_ip_adapter(
        base, subfolder="models", weight_name=["base.bin", "plus.safetensors"]
    )
    assert names == ["base", "plus"]
    assert all(one.encoder is not None for one in bare.ip_adapters.values())
    bare.unload_ip_adapter()
    bare.load_ip_adapter(base, "models", "plus.safetensors", image_encoder_folder=None)
    with pytest.raises(ArgumentError, match="plus has no image encoder: give it as image_encoder="):
        drawn(bare, ip_adapter_image=shown())
    with pytest.raises(ArgumentError, match="guidance needs the states of an empty picture"):
        drawn(bare, ip_adapter_image_embeds=torch.randn(1, 1, 17, 24))
    embeds = torch.randn(1, 1, 17, 24)
    assert drawn(bare, ip_adapter_image_embeds=embeds, guidance_scale=1.0).isfinite().all()


def test_the_encoder_that_fits_is_found(base: Path, bare: Pipeline) -> None:
    """In sdxl_models the other encoder lies beside it, as of h94's vit-h files."""
    bare.load_ip_adapter(base / "sdxl_models" / "vit-h.bin")
    encoder = bare.ip_adapters["vit-h"].encoder
    assert encoder is not None and encoder.config.hidden_size == 24
    with pytest.raises(CheckpointError, match="with states of width 36; the IP-Adapter reads 24"):
        bare.load_ip_adapter(
            base / "sdxl_models" / "vit-h.bin", image_encoder=base / "sdxl_models/image_encoder"
        )


def test_the_models_own_is_loaded_when_it_is_used(
    base: Path, bare: Pipeline, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(base / "sd", tmp_path / "sd")
    shutil.copytree(base / "models/image_encoder", tmp_path / "sd/image_encoder")
    bare.load_ip_adapter(base / "models" / "plus.safetensors")
    (tmp_path / "sd/ip_adapter").mkdir()
    file = tmp_path / "sd/ip_adapter/ip_adapter.safetensors"
    save_ip_adapter(bare.ip_adapters["plus"].network, file)
    own = Pipeline.from_pretrained(tmp_path / "sd", device="cpu")
    before = drawn(own)
    assert not own.ip_adapters
    want = drawn(bare, ip_adapter_image=shown())
    assert torch.equal(drawn(own, ip_adapter_image=shown()), want)
    assert torch.equal(drawn(own), before)  # which needs no picture
    assert own.encode_ip_adapter_image(shown()).shape == (2, 1, 17, 24)
    own.load_ip_adapter(base / "models" / "plus.safetensors")
    assert list(own.ip_adapters) == ["plus"]


def test_prompts_that_change_and_join(pipe: Pipeline) -> None:
    given = {"ip_adapter_image": shown()}
    steps = list(pipe.stream("[a:b:2]", **given, **SETTINGS))
    first = list(pipe.stream("a", **given, **SETTINGS))
    assert torch.equal(steps[1].latents, first[1].latents)
    assert not torch.equal(steps[2].latents, first[2].latents)
    whole = drawn(pipe, **given)
    halves = drawn(pipe, "a red car :0.5 AND a red car :0.5", **given)
    assert difference(halves, whole) <= 1e-4
    long = " ".join(["word"] * 100)  # of another length, so that there are two calls
    both = drawn(pipe, [long, "a"], **given)
    for i, text in enumerate((long, "a")):
        assert difference(both[i : i + 1], drawn(pipe, text, seed=5 + i, **given)) <= 1e-4


class Calls:
    """Counts how often parts compute."""

    def __init__(self, pipe: Pipeline) -> None:
        self.encoded = self.projected = 0
        (adapter,) = pipe.ip_adapters.values()
        assert adapter.encoder is not None
        adapter.encoder.register_forward_pre_hook(self._encode)
        next(iter(adapter.network.ip_adapter.values())).register_forward_pre_hook(self._project)

    def _encode(self, *_: Any) -> None:
        self.encoded += 1

    def _project(self, *_: Any) -> None:
        self.projected += 1


def test_what_it_costs(pipe: Pipeline) -> None:
    """A picture is encoded, and its keys and values computed, once a run; at scale 0 never."""
    calls = Calls(pipe)
    drawn(pipe, ip_adapter_image=shown())
    assert (calls.encoded, calls.projected) == (2, 1)  # the picture, and an empty one
    drawn(pipe, ip_adapter_image=shown(), ip_adapter_scale=0.0)
    assert (calls.encoded, calls.projected) == (2, 1)


def rerun(call: Any, inputs: Any) -> Recording:
    """As a CUDA graph works: the same memory in and out at every replay."""
    output = call(**inputs)

    def replay() -> None:
        output.copy_(call(**inputs))

    return Recording(inputs, output, replay)


def test_recordings_read_pictures(base: Path, pipe: Pipeline) -> None:
    """Without CUDA; another picture is drawn by the same recording."""
    masks = [Image.new("L", (72, 40), 255), Image.new("L", (72, 40), 128)]
    masked = {"ip_adapter_image": [shown(1), shown(2)], "ip_adapter_masks": masks}
    wants = [drawn(pipe, ip_adapter_image=shown(i)) for i in (1, 2)]
    want, plain = drawn(pipe, **masked), drawn(pipe, ip_adapter_scale=0.0)
    graphs = Graphs(pipe.unet, rerun)
    pipe.optimized = Optimized(graphs)
    for i, other in enumerate(wants):
        assert torch.equal(drawn(pipe, ip_adapter_image=shown(1 + i)), other)
        assert len(graphs.recordings) == 1
    assert torch.equal(drawn(pipe, **masked), want)
    assert torch.equal(drawn(pipe, ip_adapter_scale=0.0), plain)
    assert len(graphs.recordings) == 3


def test_faster_ways_are_the_same(base: Path, pipe: Pipeline) -> None:
    given = {"ip_adapter_image": shown()}
    want, plain = drawn(pipe, **given), drawn(pipe, ip_adapter_scale=0.0)
    pipe.optimize()
    assert difference(drawn(pipe, **given), want) <= 1e-4
    pipe.load_ip_adapter(base / "models" / "base.bin")  # onto what is optimized already
    both = drawn(pipe, ip_adapter_image=[shown(1), shown(2)])
    pipe.optimize(False)
    assert difference(drawn(pipe, ip_adapter_image=[shown(1), shown(2)]), both) <= 1e-4
    pipe.unload_ip_adapter("base")
    assert torch.equal(drawn(pipe, **given), want)
    assert torch.equal(drawn(pipe, ip_adapter_scale=0.0), plain)


def test_deep_cache(pipe: Pipeline) -> None:
    want = drawn(pipe, ip_adapter_image=shown())
    two = drawn(pipe, ip_adapter_image=shown(), deep_cache=2)
    assert not torch.equal(two, want)
    assert difference(two, drawn(pipe, ip_adapter_scale=0.0, deep_cache=2)) > 1e-2


@pytest.mark.slow
def test_compiled(pipe: Pipeline) -> None:
    want = drawn(pipe, ip_adapter_image=shown())
    pipe.optimize(compile=True)
    assert difference(drawn(pipe, ip_adapter_image=shown()), want) <= 1e-3


def test_two_passes_tiles_moves_and_a_refiner(base: Path, pipe: Pipeline) -> None:
    mask = Image.new("L", (72, 40), 0)
    mask.paste(255, (0, 0, 36, 40))
    given = {"ip_adapter_image": shown(), "ip_adapter_masks": mask}
    arguments = SETTINGS | {"output_type": "pil"}
    *_, last = hires_fix(pipe, "a", hires_scale=2, **given, **arguments)
    small = pipe("a", **given, **arguments).images
    large = arguments | {"height": 80, "width": 144, "strength": 0.5, "image": small}
    want = pipe("a", **given, **large).images[0]
    assert (np.asarray(last.output.images[0]) == np.asarray(want)).all()
    assert not torch.equal(drawn(pipe, **given, tiling=True), drawn(pipe, **given))
    pair = Ensemble(pipe, Pipeline.from_pretrained(base / "sd", device="cpu"))
    assert pair("a", refiner_start=0.5, **given, **SETTINGS).images.isfinite().all()
    pipe.to(torch.bfloat16)
    assert drawn(pipe, **given).isfinite().all()


def test_attention_maps_are_the_texts(pipe: Pipeline) -> None:
    plain = drawn(pipe, ip_adapter_image=shown())
    with pipe.explain() as attention:
        assert isinstance(attention, AttentionMaps)
        assert torch.equal(drawn(pipe, ip_adapter_image=shown()), plain)
    assert (attention.maps().sum(dim=0) - 1).abs().max() <= 1e-4


def test_controlnets_see_no_picture(models: Any, pipe: Pipeline, tmp_path: Path) -> None:
    controlnet_for(models("sd")[1]).save_pretrained(tmp_path / "net")
    name = pipe.load_controlnet(tmp_path / "net")
    seen: list[Any] = []
    pipe.controlnets[name].register_forward_pre_hook(
        lambda _, __, given: seen.append(given), with_kwargs=True
    )
    drawn(pipe, ip_adapter_image=shown(), control_image=shown(2))
    assert len(seen) == 4
    assert all(set(given) == {"context", "hint"} for given in seen)


def test_gradients(pipe: Pipeline) -> None:
    """A training step reaches every weight of the adapter, and none of the U-Net."""
    adapter = pipe.ip_adapters["plus"].network.train().requires_grad_(True)
    assert isinstance(adapter, IPAdapter)
    tokens = adapter(torch.randn(2, 1, 17, 24))
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([5.0, 600.0]), torch.randn(2, 7, 32)
    prompt = adapter.prompt(pipe.unet, tokens)
    pipe.unet(x, t, context, image_prompt=prompt).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters())


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "ip_adapter_image is missing, which plus would read"),
    ({"ip_adapter_image": "nowhere.png"}, "nowhere.png does not exist"),
    ({"ip_adapter_image": "nowhere.safetensors"}, "nowhere.safetensors does not exist; give a pi"),
    ({"ip_adapter_image": 3}, "is of the type int; it must be a path"),
    ({"ip_adapter_image": []}, "holds 0 pictures for one IP-Adapter"),
    ({"ip_adapter_image": [None]}, "ip_adapter_image holds None"),
    ({"ip_adapter_image": [[shown()], [shown()]]}, "ip_adapter_image is nested too deep"),
    ({"ip_adapter_scale": "1"}, "ip_adapter_scale is '1'; it must be a number"),
    ({"ip_adapter_scale": float("nan")}, "ip_adapter_scale is nan; it must be"),
    ({"ip_adapter_scale": [1.0, 0.5]}, "has 2 values for 1 IP-Adapters; give one, or one for eac"),
    ({"ip_adapter_blocks": "styles"}, "ip_adapter_blocks is 'styles'; expected 'all' or 'style'"),
    ({"ip_adapter_blocks": "style"}, "names blocks of Stable Diffusion XL; this model has others"),
    ({"ip_adapter_masks": [shown(), shown()]}, "holds 2 masks for the 1 pictures of plus"),
    ({"ip_adapter_image_embeds": torch.randn(2, 1, 17, 24)}, "are both given; one of them"),
]
EMBEDS: list[tuple[Any, str]] = [
    (torch.randn(2, 1, 20), r"shape \(2, 1, 20\); the IP-Adapter plus reads \(2, n, N, 24\)"),
    (torch.randn(2, 1, 17, 20), r"shape \(2, 1, 17, 20\); the IP-Adapter plus reads"),
    (torch.randn(3, 1, 17, 24), "expected 2 rows, or 1 without guidance"),
    (torch.full((2, 1, 17, 24), torch.nan), "values that are NaN or infinite"),
    ([torch.randn(2, 1, 17, 24)] * 2, "ip_adapter_image_embeds is 2 for 1 IP-Adapter; give a list"),
    ("x", "ip_adapter_image_embeds is str; expected a tensor"),
    ([3], "ip_adapter_image_embeds is int; expected a tensor"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_input_that_is_wrong(pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    given = {"ip_adapter_image": shown()} | arguments if arguments else {}
    with pytest.raises(LDMError, match=message):
        pipe.stream("a", **given)


@pytest.mark.parametrize(("embeds", "message"), EMBEDS)
def test_embeddings_that_are_wrong(pipe: Pipeline, embeds: Any, message: str) -> None:
    with pytest.raises(LDMError, match=message):
        pipe.stream("a", ip_adapter_image_embeds=embeds)


def test_more_that_is_wrong(base: Path, bare: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is of an IP-Adapter, and none is loaded: load_ip_ad"):
        bare.stream("a", ip_adapter_image=shown())
    with pytest.raises(ArgumentError, match="no IP-Adapter is loaded"):
        bare.set_ip_adapter_scale(1.0)
    with pytest.raises(ArgumentError, match="that are loaded are none"):
        bare.encode_ip_adapter_image(shown())
    files = [base / "models" / name for name in ("base.bin", "plus.safetensors")]
    bare.load_ip_adapter(files)
    for given, message in (
        (
            shown(),
            "holds one picture for 2 IP-Adapters; give a list with one for each of base",
        ),
        ([shown()] * 3, "holds 3 entries for 2 IP-Adapters"),
    ):
        with pytest.raises(ArgumentError, match=message):
            bare.stream("a", ip_adapter_image=given)
    for scale, message in (
        ([1.0], "there are 1 scales for 2 IP-Adapters"),
        ("x", "the scale of an IP-Adapter is 'x'; expected a number"),
        (float("inf"), "the scale of an IP-Adapter is inf"),
        ({"sideways": 1.0}, "names 'sideways'; expected down, mid or up"),
        ({"down": {"block_1": 1.0}}, "names down.block_1, where this U-Net reads no text; it does"),
        ({"up": {"block_1": [1.0, 2.0, 3.0]}}, "has 3 values for up.block_1; expected 2"),
        ({"up": {"block_1": "x"}}, "the scale of an IP-Adapter is 'x'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            bare.set_ip_adapter_scale(scale)
    with pytest.raises(ArgumentError, match="name is None; the IP-Adapters that are loaded are ba"):
        bare.encode_ip_adapter_image(shown())
    embeds = bare.encode_ip_adapter_image(shown(), "base")
    save_image_embeds(tmp_path / "x.safetensors", embeds)
    for path, message in (
        (tmp_path / "x.safetensors", "exists; give another name"),
        (tmp_path / "x.png", "does not end in .safetensors"),
    ):
        with pytest.raises(ArgumentError, match=message):
            save_image_embeds(path, embeds)
    with pytest.raises(LDMError, match="not the embeddings of a picture"):
        bare.stream("a", ip_adapter_image=[str(files[1]), shown()])
