"""Every argument of a picture, defined once: its default, range, line of help and names.

    request = Request("a red car", seed=1, num_inference_steps=20)

``Pipeline.stream`` and ``Pipeline.__call__`` take a ``Request`` argument by argument; the options
of ``ldm-generate``, the keys of its files of prompts, the axes of its plots and what it writes into
a picture's file are derived from the same fields. To add an argument, add it here and in
``ldm.run``, which computes with it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ldm.config.arguments import about, argument
from ldm.config.checking import plain_number, shown
from ldm.config.forms import GENERATORS, PICTURES, TENSOR, TENSORS, is_a
from ldm.config.picture_readers import CONTROLNET, T2I_ADAPTER, PictureReader
from ldm.config.settings import check_values, choice, within
from ldm.config.upscalers import LANCZOS
from ldm.errors import ArgumentError

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image
    from torch import Generator, Tensor

    Picture = str | Path | Image | ndarray[Any, Any] | Tensor

    class Preprocessed(Protocol):
        """``ldm.control.preprocessed.ControlSource``."""

        @property
        def original(self) -> Image: ...

    Hint = Picture | Preprocessed
    Pictures = Hint | Sequence[Hint]  # of one ControlNet
else:  # what reads them checks them: no heavy package is imported here
    Generator = Picture = Pictures = Tensor = Any

STRENGTH, MASKED_STRENGTH = 0.8, 1.0  # of image-to-image, and of inpainting
MAX_BLUR = 256  # pixels
MAX_AT_ONCE = 10_000  # pictures of one call
EMBEDDINGS = {
    "prompt_embeds": "b, n, D",
    "negative_prompt_embeds": "b, n, D",
    "pooled_prompt_embeds": "b, P",
    "negative_pooled_prompt_embeds": "b, P",
}


@dataclass(frozen=True, eq=False)
class Request:
    """What to draw in one run; None is the model's own unless noted otherwise.

    Attributes:
        prompt: one text or several; "" draws without a text. Words are weighted, joined and changed
            from step to step in the grammar of ``ldm.text.grammar``: brackets that are text are
            written ``\\(`` and ``\\[``. Steps count from the first that is run; in image-to-image,
            too, fractions are of all ``num_inference_steps``, as in A1111. Of a model without text:
            a class's name or number (see ``ldm.classes.labels``).
        negative_prompt: what to steer away from; one for all prompts, or one for each.
        image: where to start from (image-to-image): one for all prompts, or one for each. A path, a
            PIL image, an array (H, W, 3) or a tensor (3, H, W), see ``ldm.images.arrays``.
        mask_image: which part of the image to draw anew (inpainting): white; like ``image``. What
            one with transparent parts says is in ``ldm.images.layers``.
        mask_blur: pixels by which the mask's edge is softened, as in A1111.
        paste_back: whether pixels outside of the (blurred) mask are bit-identical to the image's;
            else they are encoded and decoded by the VAE, as in diffusers.
        depth_map: of the image, near is bright, for models that draw to a depth: one for all
            prompts, or one for each; pictures, or a tensor (B, H, W) as in diffusers.
        control_image: what ControlNets that are loaded read, such as edges or a depth map, prepared
            as each network was trained: for one ControlNet, a picture for all prompts or one for
            each; for several, a list of these, in the order of loading, or, as in diffusers, for
            each prompt a list of pictures. They are stretched to the size to draw. What
            ``ldm.control.source.read_control`` returns is preprocessed there. A tensor (3, H,
            W) or (B, 3, H, W) of floats in [0, 1] is taken as it is; -1 marks what an inpainting
            ControlNet fills in.
        controlnet_conditioning_scale: factor of what a ControlNet adds; one for all, or a list; 0
            switches it off, and costs nothing.
        control_guidance_start, control_guidance_end: in [0, 1], fractions of the run's steps
            between which it is used; one for all, or a list.
        control_mode: of ControlNet-Unions, what kind a picture is: its number as in diffusers, or a
            name of ``ldm.config.controlnet_union.MODES``; None as it is preprocessed. One
            ControlNet-Union takes a list of kinds, and in control_image a picture for each, whose
            scales and ranges may be lists, too. Of several ControlNets, a list has one for each:
            a kind, a list of kinds, or None for one that is no ControlNet-Union.
        guess_mode: whether ControlNets see the prompt's rows alone, not the negative prompt's, and
            add less to finer levels; works also without a prompt, with a guidance_scale of 3 to 5.
        adapter_image: what T2I-Adapters that are loaded read, in the forms of control_image, with
            values in [0, 1]; diffusers calls it ``image``.
        adapter_conditioning_scale: factor of what a T2I-Adapter adds; one for all, or a list; 0
            switches it off. Several add up.
        adapter_conditioning_factor: in [0, 1], the fraction of the run's steps, from the first, in
            which it is used: ``int(steps·factor)``; one for all, or a list.
        reference_image: a picture whose style and things the drawn ones take over, without further
            weights (see ``ldm.techniques.reference``): one for all prompts, or one for each. It is
            stretched to the size to draw, and each step takes twice the time.
        reference_fidelity: in [0, 1], how much guidance counts the reference as well as the text:
            0 follows the prompt more, 1 the reference.
        reference_mode: "attention" lets self-attention read the reference; "adain" gives coarse
            layers its mean and deviation; "attention+adain" does both.
        style_aligned: whether all pictures of the call share the style of the first (see
            ``ldm.techniques.style_aligned``). A picture then depends on the call's first one.
        ip_adapter_image: what IP-Adapters that are loaded read: for one, a picture, or a list of
            pictures that it reads together; for several, a list with one of these for each, in the
            order of loading. All pictures that are drawn read them. In the place of a picture, a
            file that ``ldm.control.image_sources.save_image_embeds`` wrote.
        ip_adapter_image_embeds: in their place, embeddings as ``encode_ip_adapter_image`` returns
            them, a tensor for each IP-Adapter: (2, n, P), or (2, n, N, P) of all patches, of the
            empty picture and of n pictures. Without guidance, one row is enough.
        ip_adapter_scale: factor of what an IP-Adapter adds; one for all, or a list; 0 switches it
            off, and costs nothing. None as ``set_ip_adapter_scale`` says, else 1.
        ip_adapter_masks: where each of these pictures is read, white: as ip_adapter_image, one for
            each; stretched to the size to draw. Or diffusers' tensors (1, n, H, W).
        ip_adapter_blocks: "all", or of SDXL's U-Net the blocks that are known to carry "style",
            "layout" or "style+layout".
        strength: in [0, 1], how much of the image is redrawn: ``min(int(steps·strength), steps)``
            steps run, but at least one (with LCM's models all of them, from a lower level of
            noise); 0 returns the image. None is 0.8, and 1 with a mask and for edits.
        height, width: pixels, multiples of 8 if there is a VAE; None is the image's size, rounded
            down to such a multiple, without an image the model's own.
        num_inference_steps, guidance_scale: None as the model advises, else 50 and 7.5 (XL: 50 and
            5, LCM: 4 and 8.5, of pixels: see ``ldm.config.generation``) as in diffusers. Guidance
            is off for scales up to 1.
        image_guidance_scale: of models that edit an image by an instruction, how closely to keep to
            the image (s_I of Brooks et al. 2023, eq. 3); None as the model advises, else 1.5.
        guidance_rescale, guidance_interval: see ``ldm.guidance.Guidance``.
        num_images_per_prompt: pictures of each prompt.
        seed: picture i is drawn from seed + i, alone or in a batch; None picks one. A list has the
            seed of each picture: three seeds for one prompt draw it three times.
        generator: CPU generator(s) as in diffusers, in place of a seed: one for all pictures, or
            one for each.
        variation_seed, variation_strength: another seed, and in [0, 1] how far the first noise is
            turned towards its noise; then all pictures have ``seed``, and variation_seed counts up.
        latents: the first noise (B, C, h, w) instead of drawing it; with denoising_start, x at that
            level.
        prompt_embeds: (b, n, D), the states of the text encoders that the U-Net reads, in place of
            the prompt: one row for each picture, or for ``num_images_per_prompt`` of them. With
            SDXL, pooled_prompt_embeds (b, P) goes with it.
        negative_prompt_embeds, negative_pooled_prompt_embeds: likewise of the negative prompt.
        denoising_end: in (0, 1), where in the run to stop, to hand over noisy latents (output_type
            "latent", at unit scale: α x₀ + σ ε): after the last step that begins at a timestep of
            at least (1 − denoising_end) T, as in diffusers.
        denoising_start: in (0, 1), where in the run to begin, with the first step below that
            timestep, on the ``latents`` that another model has handed over. An image then only says
            what its run began with, and with a mask what is kept. A generator that goes on gives
            samplers that add noise a new one; a seed, that of the first steps again. See
            ``ldm.refiner``.
        deep_cache: compute the coarse levels of the U-Net at every n-th step only: faster, and
            another picture; 3 is usual, 1 is off.
        deep_cache_branch: how many fine layers are computed at each step; see
            ``ldm.fast.deepcache``.
        tiling: draw a picture that can be laid beside itself without a seam.
        sampler: "ddpm", "ddim", "dpmpp_2m", …, or diffusers' class or A1111's label of one, with or
            without a schedule ("dpmpp_2m_karras"); None as in ``scheduler_config.json``.
        schedule: of the noise levels: "normal" (the sampler's own), "karras", "exponential",
            "sgm_uniform", "simple", "beta" or "ays"; None as in the sampler's name, else as in the
            model's config.
        eta: in [0, 1], noise that "ddim" and "tcd" add; TCD's authors advise 0.3.
        clip_skip: how many of the text encoder's last layers are left out, as diffusers counts:
            None or 0 takes the layer that the model was trained with, 1 the one before.
            ``--clip-skip`` and pictures' files count as A1111, one more: 2 is the one before.
        classifier_scale: how much the model's classifier pushes towards the class (see
            ``ldm.classes.guidance``); 0 is off, None as the model advises, else 1.
        steps_before: steps of a pass that this run continues, for prompts that change: numbers of
            steps count from its first one, and fractions from 1 to 2 are of the steps of this run
            ("hires fix" in A1111; see ``ldm.hires``).
        output_type: "pil", "pt" (float32 (B,3,H,W) in [0, 1]), "np" (an array (B,H,W,3) in [0, 1])
            or "latent" (scaled latents).

    Raises ArgumentError for a value that cannot work with any model.
    """

    prompt: str | Sequence[str] | None = argument(
        "",
        'what to draw, such as "a red car"; several texts make several pictures. (red:1.3) weighs '
        "words, \\( is a bracket; the README names the rest. Of a model that draws classes: a "
        "class's name or number",
        "prompt",
        group="text",
        label="Prompt",
        axis="Prompt S/R",
        recorded="another",
    )
    _: KW_ONLY
    negative_prompt: str | Sequence[str] | None = argument(
        None,
        "what to steer away from",
        *("-n", "--negative-prompt"),
        # With SDXL, None may stand for zeros, which no option or web UI can choose.
        command_default="",
        kind="a text or a list of texts",
        metavar="TEXT",
        group="text",
        label="Negative prompt",
        axis="Negative prompt",
        recorded="always",
    )
    image: Picture | Sequence[Picture] | None = argument(
        None,
        "an image to start from",
        *("-i", "--image", "--init-img"),
        metavar="FILE",
        group="image",
        recorded="another",
        form=PICTURES,
    )
    mask_image: Picture | Sequence[Picture] | None = argument(
        None,
        "where to draw the --image anew: white; black stays",
        *("--mask", "--mask-image"),
        metavar="FILE",
        group="image",
        recorded="another",
        form=PICTURES,
    )
    mask_blur: float = argument(
        within(f"[0, {MAX_BLUR}]", 4.0, f"in [0, {MAX_BLUR}] pixels"),
        "how far to soften the mask's edge (default: {default:g})",
        "--mask-blur",
        metavar="PX",
        group="image",
        label="Mask blur",
    )
    depth_map: Picture | Sequence[Picture] | Tensor | None = argument(
        None,
        "the depth of the --image, for models that draw to it: a grey picture, near is bright",
        "--depth-map",
        metavar="FILE",
        group="image",
        recorded="another",
        form=PICTURES,
    )
    control_image: Pictures | Sequence[Pictures] | None = argument(
        None,
        "the picture that a --controlnet reads; may be repeated, in the same order",
        "--control-image",
        metavar="FILE",
        group="control",
        recorded="another",
        form=PICTURES,
    )
    controlnet_conditioning_scale: float | list[float] | tuple[float, ...] = argument(
        within("(-inf, inf)", 1.0, "a number, 0 (off) to 2 as a rule"),
        "how much a --controlnet steers, 0 to 2 as a rule; one for all, or S,S (default: "
        "{default:g}, or as --controlnet PATH:SCALE says)",
        *("--controlnet-conditioning-scale", "--control-scale"),
        command_default=None,
        kind="a number, or a list of them",
        metavar="S",
        group="control",
    )
    control_guidance_start: float | list[float] | tuple[float, ...] = argument(
        within("[0, 1]", 0.0, "in [0, 1]"),
        "where in the run a --controlnet begins to steer, 0 to 1; one for all, or F,F (default: "
        "{default:g})",
        *("--control-guidance-start", "--control-start"),
        kind="a number, or a list of them",
        metavar="F",
        group="control",
    )
    control_guidance_end: float | list[float] | tuple[float, ...] = argument(
        within("[0, 1]", 1.0, "in [0, 1]"),
        "where in the run it stops, 0 to 1; one for all, or F,F (default: {default:g})",
        *("--control-guidance-end", "--control-end"),
        kind="a number, or a list of them",
        metavar="F",
        group="control",
    )
    control_mode: int | str | list[Any] | tuple[Any, ...] | None = argument(
        None,
        "what kind the picture of a ControlNet-Union is, such as canny; one for all, or M,M, none "
        "for other ControlNets (default: as --control preprocesses)",
        "--control-mode",
        kind="a number or a name, or a list of them",
        metavar="M",
        group="control",
    )
    guess_mode: bool = argument(
        False,
        "let a --controlnet see the prompt's half of guidance alone, and steer coarse levels most",
        "--guess-mode",
        group="control",
    )
    adapter_image: Pictures | Sequence[Pictures] | None = argument(
        None,
        "the picture that a --t2i-adapter reads; may be repeated, in the same order",
        "--adapter-image",
        metavar="FILE",
        group="t2i_adapter",
        recorded="another",
        form=PICTURES,
    )
    adapter_conditioning_scale: float | list[float] | tuple[float, ...] = argument(
        within("(-inf, inf)", 1.0, "a number, 0 (off) to 2 as a rule"),
        "how much a --t2i-adapter steers, 0 to 2 as a rule; one for all, or S,S (default: "
        "{default:g}, or as --t2i-adapter PATH:SCALE says)",
        *("--adapter-conditioning-scale", "--adapter-scale"),
        command_default=None,
        kind="a number, or a list of them",
        metavar="S",
        group="t2i_adapter",
    )
    adapter_conditioning_factor: float | list[float] | tuple[float, ...] = argument(
        within("[0, 1]", 1.0, "in [0, 1]"),
        "the fraction of the steps, from the first, in which a --t2i-adapter steers, 0 to 1; one "
        "for all, or F,F (default: {default:g})",
        *("--adapter-conditioning-factor", "--adapter-factor"),
        kind="a number, or a list of them",
        metavar="F",
        group="t2i_adapter",
    )
    reference_image: Picture | Sequence[Picture] | None = argument(
        None,
        "a picture to take style and things from, without an adapter; a step takes twice the time",
        "--reference-image",
        metavar="FILE",
        group="style",
        recorded="another",
        form=PICTURES,
    )
    reference_fidelity: float = argument(
        within("[0, 1]", 0.5, "in [0, 1]: 0 follows the prompt more, 1 the reference_image"),
        "how closely to follow the --reference-image, 0 to 1 (default: {default:g})",
        "--reference-fidelity",
        metavar="F",
        group="style",
    )
    reference_mode: str = argument(
        choice(
            *("attention", "adain", "attention+adain"),
            words="'attention', 'adain' or 'attention+adain'",
        ),
        "how the --reference-image is read: attention, adain (coarse layers' mean and deviation) "
        "or attention+adain (default: {default})",
        "--reference-mode",
        metavar="MODE",
        group="style",
    )
    style_aligned: bool = argument(
        False,
        "draw all pictures of a batch in the style of the first",
        "--style-aligned",
        group="style",
    )
    ip_adapter_image: Pictures | Sequence[Pictures] | None = argument(
        None,
        "the picture that an --ip-adapter reads, or a file of its embeddings; may be repeated: for "
        "one adapter, several are read together, for several, one each in the same order",
        "--ip-adapter-image",
        metavar="FILE",
        group="ip_adapter",
        recorded="another",
        form=PICTURES,
    )
    ip_adapter_image_embeds: Tensor | Sequence[Tensor] | None = argument(
        None,
        "embeddings in place of ip_adapter_image: a tensor (2, n, …) for each IP-Adapter",
        form=TENSORS,
    )
    ip_adapter_scale: float | list[float] | tuple[float, ...] | None = argument(
        within("(-inf, inf)", None, "a number, 0 (off) to 1 as a rule"),
        "how much an --ip-adapter counts, 0 to 1 as a rule; one for all, or S,S (default: 1, or as "
        "--ip-adapter PATH:SCALE says)",
        "--ip-adapter-scale",
        kind="a number, or a list of them; scales by block go to set_ip_adapter_scale",
        metavar="S",
        group="ip_adapter",
    )
    ip_adapter_masks: Pictures | Sequence[Pictures] | None = argument(
        None,
        "where to read each --ip-adapter-image: white; may be repeated, in the same order",
        *("--ip-adapter-mask", "--ip-adapter-masks"),
        metavar="FILE",
        group="ip_adapter",
        recorded="another",
        form=PICTURES,
    )
    ip_adapter_blocks: str = argument(
        choice("all", "style", "layout", "style+layout"),
        "what to take over of the picture: all, or of Stable Diffusion XL style, layout or "
        "style+layout (default: {default})",
        "--ip-adapter-blocks",
        metavar="NAME",
        group="ip_adapter",
    )
    paste_back: bool = argument(
        True,
        "keep what the model makes of the black part, instead of the image's own pixels",
        "--no-paste-back",
        group="image",
    )
    strength: float | None = argument(
        within("[0, 1]", None, "in [0, 1]: 0 keeps the image, 1 redraws it"),
        f"how much of the image to redraw, 0 to 1 (default: {STRENGTH}, with a mask or of models "
        f"that edit {MASKED_STRENGTH:g})",
        *("--strength", "--denoising-strength"),
        metavar="S",
        group="image",
        label="Denoising strength",
        axis="Denoising",
        recorded="always",
    )
    height: int | None = argument(
        None,
        "pixels, a multiple of 8, of models without VAE any number (default: the model's, or as "
        "the image's shape asks)",
        *("-H", "--height"),
        metavar="PX",
        group="size",
        recorded="always",
    )
    width: int | None = argument(
        None,
        "as --height",
        *("-W", "--width"),
        metavar="PX",
        group="size",
        recorded="always",
    )
    num_inference_steps: int | None = argument(
        within("[1, inf)", None, "at least 1"),
        "denoising steps (default: as the model advises)",
        *("--num-inference-steps", "--steps"),
        metavar="N",
        group="sampling",
        label="Steps",
        axis="Steps",
        recorded="always",
    )
    guidance_scale: float | None = argument(
        within("(-inf, inf)", None, "a number, 1 to 15 as a rule"),
        "how closely to follow the text; off up to 1 (default: as the model advises)",
        *("-g", "--guidance-scale", "--cfg-scale"),
        metavar="S",
        group="guidance",
        label="CFG scale",
        axis="CFG Scale",
        recorded="always",
    )
    image_guidance_scale: float | None = argument(
        within("(-inf, inf)", None, "a number, 1 to 2 as a rule"),
        "how closely to keep to the --image, of models that edit it by an instruction (default: as "
        "the model advises)",
        "--image-guidance-scale",
        metavar="S",
        group="guidance",
        label="Image CFG scale",
        axis="Image CFG Scale",
    )
    guidance_rescale: float = argument(
        within("[0, 1]", 0.0, "in [0, 1]: 0 is off, 0.7 is usual"),
        "take back the contrast that guidance adds, 0 to 1 (default: {default:g})",
        "--guidance-rescale",
        metavar="R",
        group="guidance",
        label="CFG rescale",
    )
    guidance_interval: tuple[float, float] = argument(
        (0.0, math.inf),
        "guide only at noise levels σ/α between these (default: every level)",
        "--guidance-interval",
        kind="two numbers",
        metavar="LOW,HIGH",
        group="guidance",
    )
    num_images_per_prompt: int = argument(
        within("[1, inf)", 1, "at least 1"),
        "pictures of each text (default: {default})",
        *("-b", "--num-images", "--batch-count"),
        metavar="N",
        group="text",
        recorded="never",
    )
    seed: int | list[int] | tuple[int, ...] | None = argument(
        None,
        "the first picture's seed; the next ones count up (default: -1, a random one)",
        *("-s", "--seed"),
        command_default=-1,
        kind="a whole number, or a list of them",
        metavar="N",
        group="noise",
        label="Seed",
        axis="Seed",
        recorded="always",
    )
    generator: Generator | Sequence[Generator] | None = argument(
        None,
        "CPU generators in place of a seed: one for all pictures, or one for each",
        form=GENERATORS,
    )
    variation_seed: int | None = argument(
        None,
        "another seed, to go a part of the way to",
        "--variation-seed",
        metavar="N",
        group="noise",
        label="Variation seed",
    )
    variation_strength: float = argument(
        within("[0, 1]", 0.0, "in [0, 1]: 0 is the seed's own picture, 1 the variation_seed's"),
        "how far to go to it, 0 to 1; then it counts up, and --seed does not",
        "--variation-strength",
        command_default=None,  # shows that it was not given: the two need each other
        metavar="S",
        group="noise",
        label="Variation seed strength",
    )
    latents: Tensor | None = argument(
        None, "the first noise (B, C, h, w) instead of drawing it", form=TENSOR
    )
    prompt_embeds: Tensor | None = argument(
        None, "states (b, n, D) that the U-Net reads, in place of the prompt", form=TENSOR
    )
    negative_prompt_embeds: Tensor | None = argument(
        None, "likewise, of the negative prompt", form=TENSOR
    )
    pooled_prompt_embeds: Tensor | None = argument(
        None, "the pooled states (b, P) that SDXL reads beside prompt_embeds", form=TENSOR
    )
    negative_pooled_prompt_embeds: Tensor | None = argument(
        None, "likewise, beside negative_prompt_embeds", form=TENSOR
    )
    denoising_start: float | None = argument(
        within("(0, 1)", None, "in (0, 1), such as 0.8"),
        "where in the run to begin, on latents that another model hands over",
    )
    denoising_end: float | None = argument(
        within("(0, 1)", None, "in (0, 1), such as 0.8"),
        "where in the run to stop, to hand over noisy latents",
    )
    deep_cache: int = argument(
        within("[1, inf)", 1, "at least 1, which is off"),
        "compute the coarse levels at every Nth step only: faster, another picture (3 is usual; "
        "default: {default}, off)",
        "--deep-cache",
        metavar="N",
        group="speed",
    )
    deep_cache_branch: int = argument(0, "how many fine layers deep_cache computes at each step")
    tiling: bool = argument(
        False,
        "draw a tile that fits to itself without a seam",
        "--tiling",
        group="image",
        label="Tiling",
    )
    sampler: str | None = argument(
        None,
        'the sampling method, such as dpmpp_2m or "DPM++ 2M" (default: the model\'s own)',
        *("--sampler", "--sampling-method"),
        metavar="NAME",
        group="sampling",
        label="Sampler",
        axis="Sampler",
        recorded="always",
    )
    schedule: str | None = argument(
        None,
        "how the noise levels lie, such as karras (default: as the model says)",
        *("--schedule", "--scheduler"),
        metavar="NAME",
        group="sampling",
        label="Schedule type",
        recorded="always",
    )
    eta: float = argument(
        within("[0, 1]", 0.0, "in [0, 1]: 0 adds no noise"),
        "noise that the ddim and tcd samplers add, 0 to 1 (default: {default:g})",
        "--eta",
        metavar="E",
        group="sampling",
        label="Eta",
        axis="Eta",
        recorded="always",
    )
    clip_skip: int = argument(
        within("[0, inf)", 0, "at least 0: the text encoder's last layer; 1 is the one before"),
        "which layer of the text encoder to take: --clip-skip 1 is the last, 2 the one before, as "
        "A1111 counts; in Python 0 and 1, as diffusers counts (default: the last)",
        "--clip-skip",
        metavar="N",
        group="text",
        label="Clip skip",
        axis="Clip skip",
        recorded="always",
        command_default=1,
        command_offset=1,
    )
    classifier_scale: float | None = argument(
        within("(-inf, inf)", None, "a number, 0 (off) to 10 as a rule"),
        "how much the model's classifier, if it has one, pushes towards the class; 0 is off "
        "(default: as the model advises)",
        "--classifier-scale",
        metavar="S",
        group="guidance",
        label="Classifier scale",
    )
    steps_before: int = argument(
        within("[0, inf)", 0, "at least 0"), "steps of a pass that this run continues"
    )
    output_type: str = argument(
        choice("pil", "pt", "np", "latent", words="'pil', 'pt', 'np' or 'latent'"),
        'the form of the pictures: "pil", "pt", "np" or "latent"',
    )

    def __post_init__(self) -> None:
        """Raise ArgumentError for a value of a wrong type or outside its range."""
        for name, axes in EMBEDDINGS.items():
            value = getattr(self, name)
            shape = value.shape if is_a(value, "torch", "Tensor") else None
            if value is not None and len(shape or ()) != len(axes.split(",")):
                found = type(value).__name__ if shape is None else tuple(shape)
                raise ArgumentError(f"{name} is {found}; it must be a tensor ({axes})")
        is_texts = isinstance(self.prompt, str | Sequence | None)
        if not is_texts or not all(isinstance(text, str) for text in self.prompts):
            raise ArgumentError(
                f"prompt is {shown(self.prompt)}; expected a text or a list of texts"
            )
        if self.prompt_embeds is not None and any(self.prompt or ()):
            raise ArgumentError("prompt and prompt_embeds are both given; one of them decides")
        if self.prompt is None and self.prompt_embeds is None:
            raise ArgumentError("prompt is None; give a text, or prompt_embeds in its place")
        if not self.prompts:
            raise ArgumentError(
                f"num_images_per_prompt is {shown(self.num_images_per_prompt)} for 0 prompts; both "
                "must be at least 1"
            )
        check_values(self, expected="it must be")
        for field in dataclasses.fields(self):  # NumPy's numbers have no place in a file
            value = getattr(self, field.name)
            if (number := plain_number(value)) is not value:
                object.__setattr__(self, field.name, number)
        if self.count > MAX_AT_ONCE:
            raise ArgumentError(
                f"{len(self.prompts)} prompts and num_images_per_prompt {self.repeats} are "
                f"{self.count} pictures; at most {MAX_AT_ONCE} are drawn at once"
            )
        if isinstance(self.seed, list | tuple) and not 0 < len(self.seed) == self.count:
            raise ArgumentError(
                f"seed has {len(self.seed)} seeds for {len(self.prompts)} prompts and "
                f"{self.num_images_per_prompt} pictures of each; give one seed for each picture"
            )
        start, end = self.denoising_start, self.denoising_end
        if start is not None and end is not None and start >= end:
            raise ArgumentError(
                f"denoising_start is {start} and denoising_end {end}; the start must be less"
            )

    @property
    def prompts(self) -> list[str]:
        """All texts, without repeats; "" for each row of ``prompt_embeds``."""
        if self.prompt_embeds is not None:
            return [""] * len(self.prompt_embeds)
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or ())

    @property
    def repeats(self) -> int:
        """Pictures of each prompt: as many as a list of seeds says."""
        if isinstance(self.seed, list | tuple) and self.num_images_per_prompt == 1:
            return len(self.seed) // len(self.prompts)
        return self.num_images_per_prompt

    @property
    def count(self) -> int:
        """How many pictures to draw."""
        return len(self.prompts) * self.repeats

    @property
    def image_strength(self) -> float | None:
        """How much of the image to redraw, of models that do not edit; None without an image."""
        if self.image is None:
            return None
        if self.strength is not None:
            return self.strength
        return default_strength(self.mask_image is not None)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``Pipeline.stream``, by name."""
        return {name: getattr(self, name) for name in ARGUMENTS}


@dataclass(frozen=True, eq=False)
class CallRequest(Request):
    """A Request, with what concerns a call that waits for the pictures.

    Attributes:
        progress_bar: whether to show a bar on stderr; None does in a notebook and on a terminal,
            unless ``set_progress_bar_config`` says otherwise.
        callback_on_step_end: as in diffusers, a function of (pipe, step, timestep, {"latents": x})
            to call after each step; it may return {"latents": x} with other ones. They are at unit
            scale. ``Pipeline.stream`` does more.
        callback_on_step_end_tensor_inputs: ["latents"], or [].
        return_dict: False returns a tuple in place of an ``Output``, as in diffusers.
    """

    _: KW_ONLY
    progress_bar: bool | None = argument(
        None, "whether to show a progress bar (default: in a notebook and on a terminal)"
    )
    callback_on_step_end: Callable[..., Any] | None = argument(
        None,
        "called after each step with (pipe, step, timestep, {'latents': x})",
        kind="a function of (pipe, step, timestep, callback_kwargs)",
    )
    callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] | None = argument(
        None,
        "['latents'] or []: what the callback is given",
        kind="a list of names",
    )
    return_dict: bool = argument(True, "False returns a tuple, as in diffusers")


@dataclass(frozen=True, eq=False)
class LargeRequest(Request):
    """A Request, with the two ways to pictures that are larger than one run draws well.

    Attributes:
        hires_scale: factor by which a second pass enlarges each side (see ``ldm.hires``).
        hires_strength: in [0, 1], how much of the larger picture is drawn anew.
        hires_steps: steps that the second pass runs, as A1111 counts them; None is hires_strength
            of num_inference_steps.
        hires_upscaler: what enlarges between the passes: a name of ``ldm.config.upscalers``, in
            any spelling, or the path of a model (see ``ldm.upscaling``).
        outpaint: pixels to add to the image: left, top, right, bottom.
    """

    _: KW_ONLY
    hires_scale: float = argument(
        within("[1, 8]", 2.0),
        "draw small, then X times as large over it: for pictures larger than the model's own",
        "--hires-scale",
        command_default=None,  # the command draws in one pass
        metavar="X",
        group="size",
        label="Hires upscale",
    )
    hires_upscaler: str | Path = argument(
        LANCZOS,
        "what enlarges between the passes: lanczos (default), nearest, bilinear, bicubic; latent, "
        "latent_bicubic, …; or a model's file or name in --model-dir",
        "--hires-upscaler",
        command_default=None,  # shows that it was not given: it needs --hires-scale
        kind="the name of an upscaler, or a path",
        metavar="NAME|FILE",
        group="size",
        label="Hires upscaler",
        axis="Hires upscaler",
    )
    hires_steps: int | None = argument(
        within("[1, inf)", None, "at least 1"),
        "steps that the second pass runs (default: as --hires-strength says, of --steps)",
        "--hires-steps",
        metavar="N",
        group="size",
        label="Hires steps",
        axis="Hires steps",
    )
    hires_strength: float = argument(
        within("[0, 1]", 0.5),
        "how much the second pass redraws, 0 to 1 (default: {default})",
        "--hires-strength",
        command_default=None,  # shows that it was not given: it needs --hires-scale
        metavar="S",
        group="size",
    )
    outpaint: tuple[int, int, int, int] | None = argument(
        None,
        "draw past the edges of the --image: pixels left, top, right, bottom; or one number",
        "--outpaint",
        metavar="L,T,R,B",
        group="image",
    )


@dataclass(frozen=True, eq=False)
class RefinedRequest(Request):
    """A Request that two models share (see ``ldm.refiner``).

    Attributes:
        refiner_start: in (0, 1), where in the run the refiner takes over.
    """

    _: KW_ONLY
    refiner_start: float = argument(
        within("(0, 1)", 0.8, "in (0, 1), such as 0.8"),
        "where in the run the --refiner takes over, 0 to 1 (default: {default})",
        "--refiner-start",
        command_default=None,  # shows that it was not given: it needs --refiner
        metavar="F",
        group="sampling",
        label="Refiner switch at",
    )


def default_strength(masked: bool, edits: bool = False) -> float:
    """Return the default of ``strength``: with a mask, its part is redrawn completely.

    edits: whether the model also reads the image itself; then it draws from noise.
    """
    return MASKED_STRENGTH if masked or edits else STRENGTH


@functools.cache
def arguments_of(kind: PictureReader) -> tuple[str, ...]:
    """Return the names of the arguments that networks of a kind alone read: one group."""
    fields = dataclasses.fields(Request)
    group = next(about(field).group for field in fields if field.name == kind.image)
    return tuple(field.name for field in fields if about(field).group == group)


CONTROL, ADAPTER = arguments_of(CONTROLNET), arguments_of(T2I_ADAPTER)
# What says how a reference_image is read.
REFERENCE = ("reference_fidelity", "reference_mode")
# What IP-Adapters alone read.
IP_ADAPTER = (
    "ip_adapter_image_embeds",
    *(f.name for f in dataclasses.fields(Request) if about(f).group == "ip_adapter"),
)
OFFSETS = {  # argument → what the command line and files count more than Python
    field.name: about(field).command_offset
    for field in dataclasses.fields(Request)
    if about(field).command_offset
}


ARGUMENTS = tuple(field.name for field in dataclasses.fields(Request))
# Of all requests, by name.
ALL_FIELDS = {
    field.name: field for cls in (LargeRequest, RefinedRequest) for field in dataclasses.fields(cls)
}
