"""How pictures were made: from a request and the model that drew it, to what their files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ldm import __version__
from ldm.config.arguments import about
from ldm.config.picture_readers import CONTROLNET, T2I_ADAPTER, PictureReader
from ldm.config.speed import OPTIMIZED
from ldm.config.upscalers import upscaler_name
from ldm.control.control_lllite import Network
from ldm.control.hints import Hint, read_hints, split_pictures
from ldm.control.preprocessed import ControlSource
from ldm.images.depth import to_pictures
from ldm.images.files import digest
from ldm.images.generation_info import LARGEST_BATCH, GenerationInfo, given_digest, load_given
from ldm.images.generation_text import generation_text
from ldm.images.inputs import flat, read_pictures
from ldm.images.picture import Picture
from ldm.loading.model import Model
from ldm.loading.tasks import image_strength
from ldm.request import ALL_FIELDS, EMBEDDINGS, LargeRequest, Request
from ldm.samplers import Choice
from ldm.text.conditioning import negative_for_each
from ldm.text.lora_tags import Tag, write_tag

if TYPE_CHECKING:
    from PIL.Image import Image

# Arguments that a file cannot hold, or no option of the command can express.
NOT_IN_FILES = ("latents", *EMBEDDINGS, "ip_adapter_image_embeds")
NO_OPTION = ("deep_cache_branch", "steps_before", "denoising_start", "denoising_end")


def with_records(
    model: Model,
    request: Request,
    choice: Choice,
    pictures: Sequence[Image],
    seeds: Sequence[int | None],
) -> list[Picture]:
    """Return the pictures of a request with what says how each was made."""
    infos = records(model, request, choice, pictures, seeds)
    drawn = drawn_on(model)
    return [
        Picture.of(
            picture,
            generation_text(info, picture.size, __version__),
            info.settings(__version__, drawn),
        )
        for picture, info in zip(pictures, infos, strict=True)
    ]


def records(
    model: Model,
    request: Request,
    choice: Choice,
    pictures: Sequence[Image],
    seeds: Sequence[int | None],
) -> list[GenerationInfo]:
    """Describe how each picture of a request was made."""
    prompts = request.prompts
    negatives = negative_for_each(request.negative_prompt, prompts)
    given = {name: digests(request, name, model) for name in FILES}
    networks = model.used_controlnets(request.control_image is not None)
    tags, exact_tags = lora_tags(model)
    shared = shared_arguments(model, request, choice)
    missing = [name for name in NOT_IN_FILES if getattr(request, name) is not None]
    missing += [name for name in NO_OPTION if getattr(request, name) != getattr(Request, name)]
    missing += [] if exact_tags else ["set_adapters"]
    missing += unaligned(request, negatives, seeds)
    modes = request.control_mode
    if isinstance(modes, list | tuple) and any(isinstance(one, list | tuple) for one in modes):
        missing.append("control_mode")  # no option gives one network of several several pictures
    for kind in (CONTROLNET, T2I_ADAPTER):
        missing += [f"a tensor as {kind.image}"] if "" in given[kind.image] else []
    missing += ["a tensor as ip_adapter_masks"] if "" in given["ip_adapter_mask"] else []
    missing += [] if numbers_alone(model) else ["set_ip_adapter_scale"]
    found = []
    for i, (picture, seed) in enumerate(zip(pictures, seeds, strict=True)):
        text = prompts[i // request.repeats]
        own: dict[str, Any] = {"prompt": " ".join([*filter(None, [text]), *tags])}
        own["negative_prompt"] = negatives[i // request.repeats]
        if request.negative_prompt is None and model.force_zeros_for_empty_prompt:
            own["negative_prompt"] = None  # zeros, not the text ""
        if not isinstance(request, LargeRequest):  # else the first pass has another size
            own |= {"width": picture.width, "height": picture.height}
        if model.classifier and text.strip() and request.classifier_scale is None:
            own["classifier_scale"] = model.defaults.classifier_scale
        if seed is not None:
            own["seed"] = seed
        if request.variation_strength and request.variation_seed is not None:
            own["variation_seed"] = request.variation_seed + i
        inputs = {
            name: every[i // request.repeats if len(every) > 1 else 0]
            for name, every in given.items()
            if every
        }
        found.append(
            GenerationInfo(
                dict(sorted((shared | own).items())),
                loading_of(model),
                model=model.origin.model,
                vae=model.origin.vae,
                embeddings=tuple(model.origin.embeddings),
                text_encoders=model.origin.text_encoders,
                controlnets=tuple(model.origin.controlnets[name] for name in networks),
                preprocessors=preprocessors(request, networks, i // request.repeats),
                t2i_adapters=tuple(model.origin.t2i_adapters.values()),
                ip_adapters=tuple(model.origin.ip_adapters.values()),
                images=inputs,
                batch=place_in_batch(request, i, own.get("variation_seed", seed)),
                batch_prompts=batch_prompts(request),
                missing=tuple([*missing, *(["generator"] if seed is None else [])]),
                optimize=unusual_optimize(model),
                engine=model.optimized.engine_name,
            )
        )
    return found


def shared_arguments(model: Model, request: Request, choice: Choice) -> dict[str, Any]:
    """Return the arguments that all pictures of a request have in common, in JSON's types."""
    left_out = {"prompt", "negative_prompt", "seed", "variation_seed"}
    if request.image is None:
        left_out |= {"strength", "mask_blur"}
    found = {
        field.name: getattr(request, field.name)
        for field in fields(request)
        if about(field).options and field.name not in left_out
    }
    found = {
        name: ",".join(map(str, value)) if isinstance(value, list | tuple) else value
        for name, value in found.items()
        if is_recorded(name, value)
    }
    set_scales = [adapter.scale for adapter in model.ip_adapters.values()]
    unsaid = request.ip_adapter_scale is None and request.ip_adapter_image is not None
    if unsaid and numbers_alone(model) and any(one != 1 for one in set_scales):
        found["ip_adapter_scale"] = ",".join(map(repr, map(float, set_scales)))
    if "hires_upscaler" in found:
        found["hires_upscaler"] = upscaler_name(found["hires_upscaler"])
    strength = image_strength(model, request)
    if strength is not None:
        found["strength"] = strength
    advised = ["num_inference_steps", "guidance_scale"]
    for name in [*advised, "image_guidance_scale"] if model.edits else advised:
        found.setdefault(name, getattr(model.defaults, name))
    return found | {"sampler": choice.name, "schedule": choice.schedule}


def is_recorded(name: str, value: object) -> bool:
    """Whether a file holds this value of an argument; see ``request.Argument.recorded``."""
    field = ALL_FIELDS[name]
    if about(field).recorded == "changed":  # two passes: the command's default is one
        return value != field.default or name in ("hires_scale", "hires_strength")
    return about(field).recorded == "always" and value is not None


def place_in_batch(request: Request, index: int, seed: int | None) -> tuple[int, int]:
    """Return (size, index) of a batch in which the seeds count up to this picture's."""
    if seed is None or request.count > LARGEST_BATCH:
        return 1, 0
    return request.count, min(index, seed)


def batch_prompts(request: Request) -> tuple[str, ...]:
    """Return the prompts of all pictures, if they share a style: each needs the first one."""
    if not request.style_aligned or not 1 < request.count <= LARGEST_BATCH:
        return ()
    return tuple(prompt for prompt in request.prompts for _ in range(request.repeats))


def unaligned(request: Request, negatives: Sequence[str], seeds: Sequence[int | None]) -> list[str]:
    """Return what the command cannot draw again of pictures that share a style."""
    if not request.style_aligned or request.count == 1:
        return []
    found = ["several negative prompts and style_aligned"] if len(set(negatives)) > 1 else []
    first = seeds[0] or 0
    counted = request.variation_strength or list(seeds) == [first + i for i in range(len(seeds))]
    if not counted or request.count > LARGEST_BATCH:
        found.append("seeds that do not count up and style_aligned")
    return found


def digests(request: Request, option: str, model: Model) -> list[str]:
    """Return the digest of each picture that an option would give; [] without one.

    Those of several ControlNets, or T2I-Adapters, are joined; "" is that of a tensor, which no file
    holds.
    """
    name = FILES[option]
    given = getattr(request, name)
    if name == CONTROLNET.image:
        return joined_digests(request, model.used_controlnets(given is not None), CONTROLNET)
    if name == T2I_ADAPTER.image:
        return joined_digests(request, model.t2i_adapters, T2I_ADAPTER)
    if name in ("ip_adapter_image", "ip_adapter_masks"):
        return image_prompt_digests(option, given)
    if name == "depth_map":
        given = to_pictures(given)
    load = partial(load_given, option)
    pictures = read_pictures(given, name, len(request.prompts), 1, load)
    return [digest(picture) for picture in pictures or ()]


def joined_digests(
    request: Request, networks: Mapping[str, object], kind: PictureReader
) -> list[str]:
    """Return the joined digests of what networks read for each prompt, or for all."""
    if getattr(request, kind.image) is None or not networks:
        return []
    every = [rows for one in read_hints(networks, request, kind) if one for rows in one.rows]
    if any(isinstance(rows, torch.Tensor) for rows in every):
        return [""]
    most = max(map(len, every))
    return [
        ",".join(hint_digest(rows[i if len(rows) > 1 else 0]) for rows in every)  # type: ignore[arg-type]
        for i in range(most)
    ]


def hint_digest(hint: Hint) -> str:
    """Return the digest of a control picture, before it is preprocessed."""
    return digest(hint.original if isinstance(hint, ControlSource) else hint)


def preprocessors(
    request: Request, networks: Mapping[str, Network], prompt: int
) -> tuple[str, ...]:
    """Return the preprocessor of each control picture for a prompt; () if there is none."""
    if request.control_image is None or not networks:
        return ()
    found = []
    for source in chain.from_iterable(pair[0] for pair in split_pictures(networks, request)):
        rows = source if isinstance(source, list | tuple) else [source]
        row = rows[prompt if len(rows) > 1 else 0]
        found.append(row.label if isinstance(row, ControlSource) else "")
    return tuple(found) if any(found) else ()


def image_prompt_digests(option: str, given: Any) -> list[str]:
    """Return the joined digests of what IP-Adapters read for all prompts; [] without."""
    if given is None:
        return []
    found = []
    for part in every_part(given):
        if part is None or (torch.is_tensor(part) and part.ndim == 4 and "mask" in option):
            return [""]
        found += [given_digest(option, one) for one in flat(part, option)]
    return [",".join(found)]


def every_part(given: Any) -> list[Any]:
    """Return the pictures in lists of lists."""
    if not isinstance(given, list | tuple):
        return [given]
    return [one for part in given for one in every_part(part)]


def numbers_alone(model: Model) -> bool:
    """Whether the IP-Adapters' scales are numbers, which options can say."""
    return not any(isinstance(a.scale, Mapping | list | tuple) for a in model.ip_adapters.values())


def lora_tags(model: Model) -> tuple[list[str], bool]:
    """Return tags of the LoRAs in use for a prompt, and whether they say all."""
    used = [lora for lora in model.loras.loaded.values() if lora.active]
    scales = [lora.scales for lora in used]
    exact = all(s.get("text_encoder_2", s["text_encoder"]) == s["text_encoder"] for s in scales)
    names = [Path(lora.path).stem for lora in used]
    pairs = zip(names, scales, strict=True)
    return [write_tag(Tag(name, s["text_encoder"], s["unet"])) for name, s in pairs], exact


def loading_of(model: Model) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that a model has now."""
    names = ("int8", "fp8", "int8_weights", "few_steps")
    now = {name: getattr(model, name) for name in names}
    return model.origin.loading | {name: True for name, on in now.items() if on}


def unusual_optimize(model: Model) -> bool | None:
    """Return how the parts computed if not as the command does: optimized on a CPU and on CUDA.

    The two ways round differently.
    """
    usual = model.device.type in OPTIMIZED
    return None if model.optimized.on == usual else model.optimized.on


def drawn_on(model: Model) -> dict[str, str]:
    """Describe where a picture was drawn, for information."""
    dtype = str(next(model.unet.parameters()).dtype).removeprefix("torch.")
    return {"device": model.device.type, "dtype": dtype, "torch": torch.__version__}


FILES = {  # option: argument
    "image": "image", "mask": "mask_image", "depth_map": "depth_map",
    "control_image": "control_image", "adapter_image": "adapter_image",
    "reference_image": "reference_image",
    "ip_adapter_image": "ip_adapter_image", "ip_adapter_mask": "ip_adapter_masks",
}  # fmt: skip
