"""A U-Net steered by a ControlNet: its step, what is computed once, and its memory from files.

`python -m tools.bench --only control` runs all of these. Steps are of Stable Diffusion 1.5's size,
at 32×32 latents; an adapter of another kind gets a row in ADAPTERS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.folder import empty
from ldm.config import ControlNetConfig, IPAdapterConfig, UNetConfig
from ldm.control.controlnet import ControlNet
from ldm.fast import speed_up
from ldm.pipeline import Pipeline
from ldm.unet import Residuals
from tools.bench.models import allowed_error, ceiling, error, fill, pair, share, unet_inputs
from tools.bench.processes import LOAD, PROMPT, SEED, python, sd15, work
from tools.bench.race import Race
from tools.bench.sizes import TEXT, at, tiny

SMALL = 16  # latents on which outcomes are compared
PIXELS = 8  # for each latent
IP_ADAPTER, ENCODER = "ip-adapter_sd15.safetensors", "image_encoder"  # as h94 names them
ADAPTED = 1 / 0.75  # how many times the memory of ours theirs shall take


def peer_controlnet(unet: nn.Module) -> nn.Module:
    """Make diffusers' ControlNet of a U-Net, with random weights; none of them is 0."""
    import diffusers

    with torch.device("meta"):
        made = diffusers.ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    return fill(made)


def controlnets(unet: nn.Module) -> tuple[ControlNet, nn.Module]:
    """(ours, diffusers'), float32, whose weights are the same tensors."""
    peer = peer_controlnet(unet)
    config = ControlNetConfig.from_dict(dict(peer.config))
    ours = share(empty(ControlNet, config), peer)
    assert isinstance(ours, ControlNet)
    return ours, peer


def hint(size: int) -> Tensor:
    """Return a control picture (1, 3, H, W) for latents of a size."""
    side = size * PIXELS
    return torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(2))


def step(what: str, ours_in: torch.dtype, theirs_in: torch.dtype, goal: float) -> Race:
    """Race a guided step. Ours reads features of the picture that a run computes once."""
    usual = at(32, SMALL)  # latents of a step
    ours, theirs = pair("unet")
    net, its_net = controlnets(theirs)
    networks = ((ours, net), (theirs, its_net))

    def call_theirs(size: int = usual, dtype: torch.dtype = theirs_in) -> Tensor:
        x, t, context = unet_inputs(theirs, size, dtype)
        picture = hint(size).to(dtype).repeat(2, 1, 1, 1)
        down, mid = its_net(x, t, context, controlnet_cond=picture, return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return theirs(x, t, context, **added).sample

    exact = call_theirs(SMALL, torch.float32)
    for one in networks[1]:
        one.to(theirs_in)
    if ours_in == theirs_in:  # one memory again
        share(ours, theirs)
        share(net, its_net)
    for one in networks[0]:
        speed_up(one.to(ours_in))
    features: dict[int, Tensor] = {}

    def call_ours(size: int = usual) -> Tensor:
        x, t, context = unet_inputs(ours, size, ours_in)
        if size not in features:
            features[size] = net.embed_hint(hint(size).to(ours_in))
        *skips, middle = net(x, t, context, hint=features[size])
        return ours(x, t, context, residuals=Residuals(skips, middle))

    def check() -> tuple[float, float]:
        peer = error(call_theirs(SMALL), exact)
        # In another format than ours, the peer's own error would be float32's.
        return error(call_ours(SMALL), exact), allowed_error(
            peer if ours_in == theirs_in else 0.03, ours_in
        )

    more = partial(ceiling, call_ours)
    what = f"SD 1.5 and a ControlNet, step, {usual}x{usual}, {what}"
    return Race(what, call_ours, call_theirs, check, goal, turns=3, more=more)


def default() -> Race:
    """Each in what its library takes where the processor has bfloat16."""
    return step(
        "bf16 against diffusers' default (float32)", torch.bfloat16, torch.float32, 1 / 0.85
    )


def equal(dtype: torch.dtype) -> Race:
    """Both in one format."""
    name = str(dtype).removeprefix("torch.")
    return step(name, dtype, dtype, 1.0)


@contextmanager
def counting(*modules: nn.Module) -> Iterator[list[int]]:
    """Count the calls of each module."""
    calls = [0] * len(modules)

    def count(index: int, *_: Any) -> None:
        calls[index] += 1

    handles = [
        module.register_forward_hook(partial(count, index)) for index, module in enumerate(modules)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def once() -> Race:
    """Compare how often the picture is encoded in a run of the built-in model."""
    steps = at(20, 2)
    import diffusers
    from PIL import Image

    folder, made = asset_path("weights"), work() / "builtin-controlnet"
    base = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    network = peer_controlnet(base.unet)
    network.save_pretrained(made)
    theirs = diffusers.StableDiffusionControlNetPipeline(
        **base.components, controlnet=network, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    ours = Pipeline.from_pretrained(folder, controlnet=made, dtype="float32")
    (net,) = ours.controlnets.values()
    picture = Image.effect_noise((128, 128), 80).convert("RGB")

    def call_ours(**options: Any) -> list[int]:
        with counting(net.controlnet_cond_embedding, net.conv_in, ours.unet) as calls:
            ours(
                PROMPT, seed=SEED, num_inference_steps=steps, control_image=picture,
                output_type="latent", sampler="ddim", **options,
            )  # fmt: skip
        return calls

    def call_theirs() -> int:
        with counting(network.controlnet_cond_embedding) as calls:
            theirs(PROMPT, image=picture, num_inference_steps=steps, output_type="latent")
        return calls[0]

    def more() -> dict[str, str]:
        runs = {
            "ControlNet calls": {},
            "at scale 0": {"controlnet_conditioning_scale": 0.0},
            "in the first half": {"control_guidance_end": 0.5},
        }
        return {name: f"{call_ours(**given)[1]} of {steps}" for name, given in runs.items()}

    return Race(
        f"how often the control picture is encoded, {steps} steps",
        lambda: call_ours()[0],
        call_theirs,
        lambda: (0.0, 0.0),
        steps,
        measured=True,
        more=more,
    )


class Adapter(NamedTuple):
    """An adapter for the model of ``sd15``, and how each library loads the two.

    make: writes its files once, in float16, and returns where they are.
    ours, theirs: lines that make ``pipe`` of the folders ``sys.argv[1]`` and ``sys.argv[2]``, in
        ``dtype``.
    """

    make: Callable[[], Path]
    ours: str
    theirs: str


def sd15_controlnet() -> Path:
    """Make, once, a folder with a random ControlNet of Stable Diffusion 1.5's sizes."""
    folder = work() / "sd15-controlnet"
    if not (folder / "config.json").exists():
        import diffusers

        config = diffusers.UNet2DConditionModel.load_config(sd15() / "unet")
        with torch.device("meta"):
            unet = diffusers.UNet2DConditionModel.from_config(config)
        peer_controlnet(unet).half().save_pretrained(folder)
    return folder


def sd15_adapters() -> Path:
    """Make, once, that folder with an IP-Adapter beside it and its encoder, of ViT-H's sizes."""
    folder = sd15_controlnet()
    if not (folder / ENCODER / "config.json").exists():
        import transformers

        from ldm.control.ip_adapter import IPAdapter
        from ldm.loading.ip_adapter import save_ip_adapter

        unet = UNetConfig.from_file(sd15() / "unet" / "config.json")
        adapter = empty(IPAdapter, IPAdapterConfig.like(unet, image_width=at(1024, TEXT)))
        save_ip_adapter(cast("IPAdapter", fill(adapter)), folder / IP_ADAPTER, torch.float16)
        sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
        sizes |= {"num_attention_heads": 16, "patch_size": 14, "projection_dim": 1024}
        if tiny():
            sizes |= {"hidden_size": TEXT, "intermediate_size": TEXT, "num_hidden_layers": 2}
            sizes |= {"num_attention_heads": 2, "projection_dim": TEXT}
        config = transformers.CLIPVisionConfig(**sizes, image_size=224, hidden_act="gelu")
        with torch.device("meta"):
            encoder = transformers.CLIPVisionModelWithProjection(config)
        fill(encoder).half().save_pretrained(folder / ENCODER)
    return folder


ADAPTERS = {
    "controlnet": Adapter(
        sd15_controlnet,
        """
from ldm.pipeline import Pipeline
began = time.perf_counter()
pipe = Pipeline.from_pretrained(sys.argv[1], controlnet=sys.argv[2], device="cpu", dtype=dtype)
""",
        """
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
began = time.perf_counter()
network = ControlNetModel.from_pretrained(sys.argv[2], torch_dtype=dtype)
pipe = StableDiffusionControlNetPipeline.from_pretrained(
    sys.argv[1], controlnet=network, torch_dtype=dtype)
""",
    ),
    "controlnet-and-ip-adapter": Adapter(
        sd15_adapters,
        f"""
from ldm.pipeline import Pipeline
began = time.perf_counter()
pipe = Pipeline.from_pretrained(sys.argv[1], controlnet=sys.argv[2], device="cpu", dtype=dtype)
pipe.load_ip_adapter(sys.argv[2] + "/{IP_ADAPTER}", image_encoder=sys.argv[2] + "/{ENCODER}")
""",
        f"""
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from transformers import CLIPVisionModelWithProjection
began = time.perf_counter()
network = ControlNetModel.from_pretrained(sys.argv[2], torch_dtype=dtype)
encoder = CLIPVisionModelWithProjection.from_pretrained(
    sys.argv[2] + "/{ENCODER}", dtype=dtype)
pipe = StableDiffusionControlNetPipeline.from_pretrained(
    sys.argv[1], controlnet=network, image_encoder=encoder, torch_dtype=dtype)
pipe.load_ip_adapter(
    sys.argv[2], subfolder="", weight_name="{IP_ADAPTER}", image_encoder_folder=None)
""",
    ),
}


def memory(name: str, default: bool = False) -> Race:
    """Compare the peak memory of processes that load the model and an adapter.

    default: each in what its library takes on this processor, not both in bfloat16.
    """
    adapter = ADAPTERS[name]
    folders = str(sd15()), str(adapter.make())
    dtypes = ("None", "torch.float32") if default else ("torch.bfloat16", "torch.bfloat16")
    pairs = zip(dtypes, (adapter.ours, adapter.theirs), strict=True)
    scripts = [LOAD.format(load=f"dtype = {dtype}\n{part}") for dtype, part in pairs]

    formats = "each library's default" if default else "bf16"

    def measure(script: str, index: int = 1) -> float:
        return float(json.loads(python("-c", script, *folders))[index])

    def check() -> tuple[float, float]:
        ours, theirs = (measure(script, 2) for script in scripts)
        return abs(ours - theirs) / theirs, 0.5  # the modules stand in another order

    return Race(
        f"load SD 1.5 and a {name.replace('-', ' ')}, fp16 files as {formats}: peak, MB",
        lambda: measure(scripts[0]),
        lambda: measure(scripts[1]),
        check,
        ADAPTED,
        turns=2,
        measured=True,
    )


SECTIONS: dict[str, Callable[[], Race]] = {
    "control-default": default,
    "control-bf16": partial(equal, torch.bfloat16),
    "control-fp32": partial(equal, torch.float32),
    "control-once": once,
    **{f"control-memory-{name}": partial(memory, name) for name in ADAPTERS},
    **{f"control-memory-{name}-default": partial(memory, name, True) for name in ADAPTERS},
}
