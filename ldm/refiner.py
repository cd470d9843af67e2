"""A base model and a refiner: two models share the steps of one run.

    pair = Ensemble(Pipeline.from_pretrained("base"), Pipeline.from_pretrained("refiner"))
    pair("a red car", seed=1, refiner_start=0.8).images[0]

The refiner was trained for the cleaner levels alone. It continues from the base's noisy latents, so
that both must have latents of one format. Both models stay in memory.

Source: Balaji et al. 2022, "eDiff-I" (an ensemble of expert denoisers); Podell et al. 2023,
section 2.5 (the refiner of SDXL).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ldm.config import VAEConfig
from ldm.config.arguments import takes
from ldm.errors import ArgumentError, CheckpointError
from ldm.loading.model import Model
from ldm.output import Output
from ldm.preparation import Run, prepare
from ldm.request import ADAPTER, CONTROL, IP_ADAPTER, RefinedRequest
from ldm.run import Progress, Start, encode_start, finish, make_start, steps_of


class Ensemble:
    """Draws with two models: the base from noise on, the refiner the last steps."""

    def __init__(self, base: Model, refiner: Model) -> None:
        """Put them together. Raises CheckpointError for latents of different formats."""
        check_same_latents(base, refiner)
        self.base, self.refiner = base, refiner

    @takes(RefinedRequest)
    def __call__(self, request: RefinedRequest) -> Output:
        """Draw pictures: run ``stream`` to its end."""
        (last,) = deque(stream(self, request), maxlen=1)
        assert last.output is not None
        return last.output

    @takes(RefinedRequest)
    def stream(self, request: RefinedRequest) -> Iterator[Progress]:
        """Draw as ``Pipeline.stream``, with the last steps by the refiner.

        What the request leaves out, both take from the base: sampler, steps, guidance; also the
        base's VAE decodes. LoRAs and new words are those that each model has loaded; ControlNets
        and T2I-Adapters are of the base.
        Raises ArgumentError for an argument that cannot work with either, at the call.
        """
        return stream(self, request)


def stream(models: Ensemble, request: RefinedRequest) -> Iterator[Progress]:
    """Check a request against both models; return the steps, computed when iterated over."""
    for name in ("denoising_start", "denoising_end"):
        if getattr(request, name) is not None:
            raise ArgumentError(f"refiner_start takes the place of {name}; leave that out")
    where = request.refiner_start
    models.base.load_own_adapters(request)
    first = prepare(models.base, replace(request, denoising_end=where, output_type="latent"))
    shared = replace(
        request,
        num_inference_steps=len(first.schedule.steps),
        guidance_scale=first.scale,
        sampler=first.schedule.choice.name,
        schedule=first.schedule.choice.schedule,
        denoising_start=where,
        latents=torch.zeros(
            first.noise.shape, dtype=torch.float32, device="cpu"
        ),  # in the place of what the base will hand over
        output_type="latent",
        # What the base alone reads.
        **{name: getattr(RefinedRequest, name) for name in (*CONTROL, *ADAPTER, *IP_ADAPTER)},
    )
    second = prepare(models.refiner, shared)
    # One sequence of noise: no draw of the first steps comes again.
    return stages(first, replace(second, noise=first.noise), request)


def stages(first: Run, second: Run, request: RefinedRequest) -> Iterator[Progress]:
    """Compute both parts of a request, and decode with the base."""
    total = len(first.schedule.run) + len(second.schedule.run)
    with first.model.drawing() as one, second.model.drawing() as other:
        start = make_start(first)
        for progress in steps_of(first, start):
            yield replace(progress, steps=total, output=None)
            one.move_here()
            other.move_here()
        first.model.send_home()
        for later in steps_of(second, hand_over(second, start, progress.latents)):
            output = None
            if later.output is not None:
                second.model.send_home()
                x = later.latents.to(first.model.device)
                output = finish(replace(first, request=request), x)
            yield replace(later, step=progress.step + later.step, steps=total, output=output)
            one.move_here()
            other.move_here()


@torch.no_grad()
def hand_over(run: Run, start: Start, x: Tensor) -> Start:
    """Return what the refiner's ``run`` begins with: the base's x, and its image and noise."""
    image = encode_start(run) if start.image is None else start.image
    device = run.model.device
    known = [None if tensor is None else tensor.to(device) for tensor in (image, start.eps)]
    return Start(x.to(device), *known)


def check_same_latents(base: Model, refiner: Model) -> None:
    """Raise CheckpointError for models whose latents differ in meaning or size.

    The scaling factor tells the VAEs of Stable Diffusion and SDXL apart; a TAESD has none.
    """
    formats = []
    for model in (base, refiner):
        config = model.vae.config
        family = "Stable Diffusion XL" if model.xl else "Stable Diffusion 1.x or 2.x"
        formats.append((config.latent_channels, config.scale, family))
    scales = [
        one.vae.config.scaling_factor
        for one in (base, refiner)
        if isinstance(one.vae.config, VAEConfig)
    ]
    if formats[0] == formats[1] and len(set(scales)) < 2:
        return
    mine, its = (
        f"{channels} channels at 1/{scale} of the size, of {family}"
        for channels, scale, family in formats
    )
    if formats[0] == formats[1]:
        mine, its = (f"a scaling_factor of {scale}" for scale in scales)
    raise CheckpointError(
        f"the refiner cannot continue the base's latents: its own have {its}, the base's {mine}; "
        "give a refiner of the same family"
    )
