"""Rows of `python -m tools.bench --device cuda`, measured in a process of their own.

    python -m tools.bench.gpu 0 1 2 …     # the numbers of rows; prints a line of JSON for each

Random weights of Stable Diffusion 1.5's and XL's sizes in bfloat16, one memory for both libraries.
diffusers is given the texts' embeddings, so that its pictures take no time for texts; ours do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.family import read_family
from ldm.checkpoints.folder import empty
from ldm.clip import CLIPTextEncoder
from ldm.config import UNetConfig, VAEConfig
from ldm.errors import ArgumentError
from ldm.fast.fp8 import CAPABILITY, quantize
from ldm.fast.sdpa import fastest_attention
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.text.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from tools.bench.cuda import UNABLE
from tools.bench.models import error, fill, share

TOKENS, SCALE = 77, 7.5
REPEATS = 5  # measured turns of a row
PRODUCT = 8192  # side of the bare products that show the card's rate
PEER_MODE = "reduce-overhead"  # of torch.compile: CUDA graphs; max-autotune searches for minutes


class Family(NamedTuple):
    """What is drawn."""

    name: str
    config: str  # of configs/models
    side: int  # of the pictures, pixels
    steps: int


class Row(NamedTuple):
    """A row of the table."""

    family: str
    library: str
    mode: str
    batch: int

    def label(self) -> str:
        """Name the row."""
        return f"{self.family}, {self.library} {self.mode}, batch {self.batch}"


FAMILIES = {
    "SD 1.5": Family("SD 1.5", "sd1", 512, 20),
    "XL": Family("XL", "sdxl", 1024, 30),
}
# Those that compile come last: they take most of the time, which may end before they do.
PLAIN = (("ldm", "recorded"), ("diffusers", "eager"), ("ldm", "eager"), ("ldm", "fp8"))
COMPILED = (("ldm", "compiled"), ("diffusers", "compiled"))
ROWS = tuple(
    Row(family, library, mode, batch)
    for modes in (PLAIN, COMPILED)
    for batch in (1, 8)
    for family in FAMILIES
    for library, mode in modes
)


def filled(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Draw weights on the device that keep activations of about unit size."""
    module = fill(module.to(dtype), device)
    for buffer in module.buffers():  # position numbers
        buffer.copy_(torch.arange(buffer.numel(), device=device).view(buffer.shape))
    return module


class Both:
    """A family's model in both libraries, and what they are given."""

    def __init__(self, family: Family, device: torch.device, tiny: bool) -> None:
        import diffusers

        self.family, self.device, self.dtype = family, device, torch.bfloat16
        found = read_family(family.config)
        unet, vae, texts = found.unet, found.vae, [text.config for text in found.texts]
        if tiny:
            from tools import same_pictures as small

            xl = family.name == "XL"
            unet = UNetConfig(**(small.XL_UNET if xl else small.TEXT_UNET))
            blocks = {"block_out_channels": (16, 16, 32, 32), "layers_per_block": 1}
            vae = VAEConfig(sample_size=64, norm_num_groups=8, **blocks)
            texts = [small.text().config, *([small.text(48, True).config] if xl else [])]
            family = family._replace(side=64, steps=2)
        self.side, self.steps = family.side, family.steps
        with torch.device("meta"):
            peers = [
                diffusers.UNet2DConditionModel.from_config(unet.to_dict()),
                diffusers.AutoencoderKL.from_config(vae.to_dict()),
            ]
        self.unet, self.vae = (filled(peer, device, self.dtype) for peer in peers)
        mine = [share(empty(UNet, unet), self.unet), share(empty(AutoencoderKL, vae), self.vae)]
        encoders = [filled(empty(CLIPTextEncoder, text), device, self.dtype) for text in texts]
        words = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
        two = {"text_encoder_2": encoders[1], "tokenizer_2": words} if encoders[1:] else {}
        scheduler = DDPMScheduler(found.scheduler)
        self.pipe = Pipeline(mine[1], encoders[0], words, mine[0], scheduler, **two)
        for part in (self.unet, self.vae):  # as diffusers' documentation advises
            part.to(memory_format=torch.channels_last)
        self.pooled = unet.projection_class_embeddings_input_dim
        if self.pooled is not None:
            self.pooled -= 6 * (unet.addition_time_embed_dim or 0)
        self.width = unet.cross_attention_dim
        self.peer = self.make_peer()

    def make_peer(self) -> Any:
        """Make diffusers' pipeline of the parts."""
        import diffusers

        scheduler = diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        )  # fmt: skip
        parts: dict[str, Any] = {"text_encoder": None, "tokenizer": None, "scheduler": scheduler}
        parts |= {"unet": self.unet, "vae": self.vae}
        if self.pooled is not None:
            more = {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
            peer = diffusers.StableDiffusionXLPipeline(**parts, **more)
        else:
            peer = diffusers.StableDiffusionPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        peer.set_progress_bar_config(disable=True)
        return peer

    def random(self, *shape: int) -> Tensor:
        """Draw numbers, always the same, in the model's dtype on the device."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """Return what a guided step of so many pictures reads, by our names."""
        rows, side = 2 * batch, self.side // 8
        x = self.random(rows, 4, side, side).contiguous(memory_format=torch.channels_last)
        given = {
            "x": x,
            "t": torch.full((rows,), 500.0, device=self.device),
            "context": self.random(rows, TOKENS, self.width),
        }
        if self.pooled is not None:
            sizes = [self.side, self.side, 0, 0, self.side, self.side]
            given["pooled"] = self.random(rows, self.pooled)
            given["time_ids"] = torch.tensor([sizes] * rows, device=self.device).to(self.dtype)
        return given

    def step(self, row: Row) -> Callable[[], Tensor]:
        """Return a guided step's call, of the model as it is now."""
        given = self.inputs(row.batch)
        if row.library == "ldm":
            network = self.pipe.optimized.graphs or self.pipe.unet
            optimized = self.pipe.optimized.on

            def ours() -> Tensor:
                with fastest_attention(self.device) if optimized else nullcontext():
                    return network(**given)

            return ours
        x, t, context = (given.pop(name) for name in ("x", "t", "context"))
        added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]} if given else None

        def theirs() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            options = {} if added is None else {"added_cond_kwargs": added}
            return self.unet(x, t, context, **options).sample

        return theirs

    def picture(self, row: Row) -> Callable[[], Tensor]:
        """Return the call that draws pictures, as tensors."""
        side, batch = self.side, row.batch
        settings: dict[str, Any] = {
            "num_inference_steps": self.steps, "guidance_scale": SCALE, "output_type": "pt",
            "height": side, "width": side,
        }  # fmt: skip
        if row.library == "ldm":
            prompts = ["a red car"] * batch
            return lambda: self.pipe(prompts, sampler="ddim", seed=1, **settings).images
        latents, text = self.random(batch, 4, side // 8, side // 8), self.random
        settings["prompt_embeds"] = text(batch, TOKENS, self.width)
        settings["negative_prompt_embeds"] = text(batch, TOKENS, self.width)
        if self.pooled is not None:
            settings["pooled_prompt_embeds"] = text(batch, self.pooled)
            settings["negative_pooled_prompt_embeds"] = text(batch, self.pooled)
        return lambda: self.peer(latents=latents.clone(), **settings).images

    def set_mode(self, row: Row) -> None:
        """Make the row's library compute in its mode."""
        if row.library == "ldm":
            ways = {"eager": {"on": False}, "recorded": {}, "compiled": {"compile": True}}
            ways["fp8"] = {"fp8": True}
            if row.mode == "fp8" and self.device.type == "cpu":  # a rehearsal, of the same layers
                self.pipe.optimize(False)
                quantize(self.pipe.unet)
            else:
                self.pipe.optimize(**ways[row.mode])
        elif row.mode == "compiled" and not getattr(self.peer, "compiled", False):
            self.peer.compiled = True  # diffusers' fastest exact way, for good
            self.unet.fuse_qkv_projections()
            self.vae.fuse_qkv_projections()
            self.unet.compile(mode=PEER_MODE, fullgraph=True, dynamic=False)
            self.vae.decode = torch.compile(
                self.vae.decode, mode=PEER_MODE, fullgraph=True, dynamic=False
            )

    def weights(self, library: str) -> int:
        """Count the bytes of a library's weights."""
        ours = [self.pipe.unet, self.pipe.vae, *(t.encoder for t in self.pipe.text_models)]
        parts = ours if library == "ldm" else [self.unet, self.vae]
        return sum(p.nbytes for part in parts for p in part.parameters())


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Return the seconds of a call, to the end of what it has the device do."""
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        call()
    wait(device)
    return (time.perf_counter() - began) / times


@cache
def product_rate(device: torch.device, tiny: bool) -> float:
    """Return TFLOP/s of bare products of matrices in bfloat16."""
    side = 128 if tiny else PRODUCT
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 2e-12 * side**3 / min(seconds(lambda: a @ b, device, 10) for _ in range(3))


def step_flops(both: Both, batch: int) -> float:
    """Count the FLOP of a guided step on "meta", in products of matrices and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    unet = empty(UNet, both.pipe.unet.config).to(both.dtype)
    given = {name: y.to("meta") for name, y in both.inputs(batch).items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(**given)
    return float(counter.get_total_flops())


@torch.no_grad()
def measure(row: Row, both: Both, tiny: bool) -> dict[str, Any]:
    """Measure a row."""
    device = both.device
    both.set_mode(row)
    held = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    draw, step = both.picture(row), both.step(row)
    first = seconds(draw, device)
    for _ in range(3):
        got = step()
    got = got.float().clone()
    once = seconds(step, device)
    times = max(1, min(20, int(0.3 / max(once, 1e-9))))
    each = statistics.median(seconds(step, device, times) for _ in range(REPEATS))
    again = [seconds(draw, device) for _ in range(1 if row.batch > 1 else 2)]
    peak = 0
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - held + both.weights(row.library)
    rate, flops = product_rate(device, tiny), step_flops(both, row.batch)
    reference = both.step(Row(row.family, "diffusers", "eager", row.batch))
    plain = not getattr(both.peer, "compiled", False)
    return row._asdict() | {
        "steps_per_s": 1 / each,
        "picture_s": min(again),
        "first_picture_s": first,
        "peak_mb": peak / 1e6,
        "step_tflop": flops / 1e12,
        "product_tflops": rate,
        "share": flops / 1e12 / each / rate,
        # Of the same step, in parts of its spread; against diffusers' plain one while it is plain.
        "difference": error(got, reference()) if plain else None,
    }


def main() -> int:
    """Measure rows, printing each as it is done; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int, nargs="+", metavar="ROW", help="numbers of rows")
    parser.add_argument("--device", default="cuda", help="cpu to rehearse (default: cuda)")
    parser.add_argument("--rehearse", action="store_true", help="tiny models")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    models: dict[str, Both] = {}
    for number in arguments.rows:
        row = ROWS[number]
        print(json.dumps({"row": number, "began": True}), flush=True)
        try:
            if row.family not in models:
                models[row.family] = Both(FAMILIES[row.family], device, arguments.rehearse)
            found = measure(row, models[row.family], arguments.rehearse)
        except ArgumentError as problem:
            able = row.mode != "fp8" or torch.cuda.get_device_capability(device) >= CAPABILITY
            found = row._asdict() | {"problem": f"{problem}" if able else UNABLE}
        except Exception as problem:
            words = " ".join(str(problem).split()) or type(problem).__name__
            found = row._asdict() | {"problem": f"{type(problem).__name__}: {words:.300}"}
        print(json.dumps({"row": number, **found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
