"""What users of diffusers write out of habit, and what stands for it here: one table.

``Pipeline`` reads it: harmless habits are accepted, renamed ones translated, and every other one
raises an error that names the way here. ``markdown()`` renders the same rows for the documentation.

Source: the documentation of diffusers 0.35, its pipelines of the Stable Diffusion family.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

from ldm.errors import UnknownArgumentError, did_you_mean

P = ParamSpec("P")
R = TypeVar("R")
Place = Literal["from_pretrained", "call", "pipe", "import"]
TITLES: dict[Place, str] = {
    "from_pretrained": "`from_pretrained(…)`, `from_single_file(…)`",
    "call": "`pipe(…)`",
    "pipe": "`pipe.…`",
    "import": "`from diffusers import …`",
}


@dataclass(frozen=True)
class Habit:
    """A name of diffusers.

    Attributes:
        names: of arguments, methods or classes.
        here: what to write instead, or why nothing needs to be written.
        kind: "works" does the same here, by the same name (documentation only); "renamed" is
            translated to ``to``; "ignored" is accepted and has no effect; "off" is accepted if it
            is None, False or an empty list, and else an error; "error" always is one, but for None.
        to: the argument here of a "renamed" one.
    """

    names: tuple[str, ...]
    here: str
    kind: Literal["works", "renamed", "ignored", "off", "error"] = "error"
    to: str = ""


def row(names: str, here: str, kind: Any = "error", to: str = "") -> Habit:
    """Make a row of the table; ``names`` are separated by spaces."""
    return Habit(tuple(names.split()), here, kind, to)


NO_CHECKER = "there is no safety checker"
NOT_HERE = "ldm does not have it"
NOTHING = "nothing needs to be done here"
SIZES = "SDXL reads the size of the picture, uncropped; it cannot be set"
MEMORY = "attention needs little memory here without it"
VAE_MEMORY = "pictures are decoded one at a time, and in strips if memory does not suffice"

TABLE: dict[Place, tuple[Habit, ...]] = {
    "from_pretrained": (
        row("variant revision cache_dir token local_files_only", "the same", "works"),
        row("torch_dtype", "`dtype`: a torch.dtype or its name", "renamed", "dtype"),
        row("use_auth_token", "`token`", "renamed", "token"),
        row("extract_ema", "`ema`", "renamed", "ema"),
        row("use_safetensors", "safetensors are preferred, and pickles run no code", "ignored"),
        row("low_cpu_mem_usage add_watermarker", "nothing to do", "ignored"),
        row("requires_safety_checker load_safety_checker", NO_CHECKER, "ignored"),
        row("safety_checker feature_extractor image_encoder", NO_CHECKER, "off"),
        row("force_download resume_download proxies mirror", "the hub's cache decides", "off"),
        row("output_loading_info", "Pipeline raises an error for weights that do not fit", "off"),
        row("device_map", "give device='cuda', or call enable_model_cpu_offload()"),
        row("scheduler", "give sampler= and schedule= when you draw"),
        row("unet", "give a folder or a file that holds it as the model"),
        row("tokenizer text_encoder_2 tokenizer_2", "give text_encoder= a folder or a file"),
        row("subfolder", "give the path of the folder"),
        row("custom_pipeline trust_remote_code", "code of models is never run", "off"),
        row(
            "quantization_config",
            "give int8=True on a CPU, int8_weights=True or fp8=True on a GPU",
        ),
        row("original_config original_config_file config", "the weights say what the model is"),
        row("image_size num_in_channels", "the weights say what the model is"),
        row("upcast_attention", "numbers that overflow are computed in float32", "ignored"),
        row("scheduler_type", "give sampler= when you draw"),
        row("controlnet", "the same, of folders and files: a path, or a list of paths", "works"),
        row("adapter", "the same, of T2I-Adapters' folders and files: a path or a list", "works"),
    ),
    "call": (
        row("prompt negative_prompt image mask_image strength height width", "the same", "works"),
        row(
            "num_inference_steps guidance_scale guidance_rescale eta generator", "the same", "works"
        ),
        row("latents num_images_per_prompt output_type return_dict", "the same", "works"),
        row("clip_skip", "the same (`--clip-skip` counts as A1111: one more)", "works"),
        row("prompt_embeds negative_prompt_embeds", "the same", "works"),
        row("pooled_prompt_embeds negative_pooled_prompt_embeds", "the same, for SDXL", "works"),
        row(
            "callback_on_step_end callback_on_step_end_tensor_inputs",
            "they work, but what the callback returns is not used; or iterate over pipe.stream(…)",
            "works",
        ),
        row("callback callback_steps", "give callback_on_step_end, or iterate over pipe.stream(…)"),
        row(
            "cross_attention_kwargs",
            "scale LoRAs with set_adapters(name, scales=0.8); give ip_adapter_masks= itself",
            "off",
        ),
        row("prompt_2 negative_prompt_2", "both text encoders read the one prompt"),
        row("timesteps sigmas", "give schedule='karras' or another of --list-samplers"),
        row("scheduler", "give sampler='dpmpp_2m' or another of --list-samplers"),
        row("original_size target_size crops_coords_top_left", SIZES),
        row("negative_original_size negative_target_size negative_crops_coords_top_left", SIZES),
        row("aesthetic_score negative_aesthetic_score", "the refiner reads 6 and 2.5, the usual"),
        row("denoising_start denoising_end", "the same; latents have unit scale", "works"),
        row("padding_mask_crop", "crop the image and the mask", "off"),
        row("masked_image_latents", "give image= and mask_image="),
        row("init_image", "`image`", "renamed", "image"),
        row("ip_adapter_image ip_adapter_image_embeds", "the same", "works"),
        row("ip_adapter_masks", "the same, beside ip_adapter_image; pictures, too", "works"),
        row(
            "control_image controlnet_conditioning_scale",
            "the same; text-to-image, too, calls the picture control_image, and the scale is 1",
            "works",
        ),
        row(
            "guess_mode control_guidance_start control_guidance_end",
            "the same; a step of Heun and of PNDM counts once",
            "works",
        ),
        row(
            "adapter_conditioning_scale adapter_conditioning_factor",
            "the same; a T2I-Adapter's picture is adapter_image, which diffusers calls image",
            "works",
        ),
        row(
            "control_mode",
            "the same, of numbers or names; of several ControlNets one for each",
            "works",
        ),
        row("control_type control_type_idx", "`control_mode`", "renamed", "control_mode"),
        row("ref_image", "`reference_image`", "renamed", "reference_image"),
        row("style_fidelity", "`reference_fidelity`", "renamed", "reference_fidelity"),
        row(
            "reference_attn reference_adain",
            "reference_mode='attention', 'adain' or 'attention+adain'",
        ),
        row("attention_auto_machine_weight gn_auto_machine_weight", "both count as 1"),
    ),
    "pipe": (
        row("to device dtype components unet vae text_encoder tokenizer", "the same", "works"),
        row("controlnet", "pipe.controlnets, by name; load_controlnet, unload_controlnet"),
        row("adapter", "pipe.t2i_adapters, by name; load_t2i_adapter, unload_t2i_adapter"),
        row("save_pretrained load_textual_inversion", "the same, of files", "works"),
        row("set_progress_bar_config", "the same; or progress_bar=False when you draw", "works"),
        row("load_lora_weights unload_lora_weights", "the same, of files", "works"),
        row("set_adapters", "the same; `scales` or `adapter_weights`", "works"),
        row("get_active_adapters get_list_adapters delete_adapters", "the same", "works"),
        row("fuse_lora unfuse_lora", "LoRAs always are in the weights", "works"),
        row("enable_model_cpu_offload", "pipe.optimize(offload=True)", "works"),
        row("enable_sequential_cpu_offload", 'pipe.optimize(offload="sequential")', "works"),
        row("enable_attention_slicing disable_attention_slicing", MEMORY, "ignored"),
        row("enable_xformers_memory_efficient_attention", MEMORY, "ignored"),
        row("disable_xformers_memory_efficient_attention", MEMORY, "ignored"),
        row("set_use_memory_efficient_attention_xformers", MEMORY, "ignored"),
        row("enable_vae_slicing disable_vae_slicing", VAE_MEMORY, "ignored"),
        row("enable_vae_tiling disable_vae_tiling", VAE_MEMORY, "ignored"),
        row("upcast_vae", "a VAE that overflows is computed in float32 anyway", "ignored"),
        row(
            "maybe_free_model_hooks fuse_qkv_projections unfuse_qkv_projections", NOTHING, "ignored"
        ),
        row("enable_freeu disable_freeu", f"FreeU: {NOT_HERE}"),
        row("enable_lora disable_lora", "set_adapters(names) uses these, set_adapters([]) none"),
        row("set_lora_device", "LoRAs are in the weights, on the model's device"),
        row("save_lora_weights", "ldm-train writes LoRAs"),
        row(
            "load_ip_adapter unload_ip_adapter",
            "the same, of files; loaded ones add up, and each can be removed by its name",
            "works",
        ),
        row("set_ip_adapter_scale", "the same; or ip_adapter_scale= when you draw", "works"),
        row("encode_prompt", "prompts have weights, (red:1.3); or give prompt_embeds="),
        row("image_processor numpy_to_pil", "output_type= says the form of the pictures"),
        row("safety_checker feature_extractor image_encoder", NO_CHECKER, "off"),
        row("scheduler", "give sampler='dpmpp_2m' and schedule='karras' when you draw"),
        row("push_to_hub", "save_pretrained writes the folder"),
        row("from_pipe", "one Pipeline draws from text, from an image and with a mask"),
        row("load_config from_config config", "from_pretrained reads all"),
        row("_interrupt", "leave the loop over pipe.stream(…), or raise in the callback"),
        row("_guidance_scale", "give guidance_interval=: between which noise levels to guide"),
        row("enable_layerwise_casting", "call optimize(int8_weights=True)"),
        row("enable_group_offload", 'call optimize(offload="sequential")'),
        row("reset_device_map remove_all_hooks", "call optimize(False)"),
    ),
    "import": (
        row(
            "DiffusionPipeline StableDiffusionPipeline StableDiffusionXLPipeline "
            "AutoPipelineForText2Image AutoPipelineForImage2Image AutoPipelineForInpainting "
            "StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline "
            "StableDiffusionXLImg2ImgPipeline StableDiffusionXLInpaintPipeline "
            "LatentConsistencyModelPipeline LatentConsistencyModelImg2ImgPipeline "
            "DDPMPipeline DDIMPipeline",
            "ldm.Pipeline draws from text, from an image and with a mask",
        ),
        row("UNet2DConditionModel UNet2DModel", "ldm.UNet"),
        row("CLIPTextModel CLIPTextModelWithProjection", "ldm.CLIPTextEncoder"),
        row("StableDiffusionPipelineOutput", "ldm.Output"),
        row(
            "DDIMScheduler PNDMScheduler LMSDiscreteScheduler EulerDiscreteScheduler "
            "EulerAncestralDiscreteScheduler HeunDiscreteScheduler DPMSolverMultistepScheduler "
            "DPMSolverSinglestepScheduler DPMSolverSDEScheduler UniPCMultistepScheduler "
            "DEISMultistepScheduler KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler "
            "LCMScheduler TCDScheduler",
            "give sampler= and schedule= when you draw: pipe(…, sampler='dpmpp_2m')",
        ),
        row(
            "ControlNetModel MultiControlNetModel StableDiffusionControlNetPipeline "
            "StableDiffusionControlNetImg2ImgPipeline StableDiffusionControlNetInpaintPipeline "
            "StableDiffusionXLControlNetPipeline StableDiffusionXLControlNetImg2ImgPipeline "
            "StableDiffusionXLControlNetInpaintPipeline",
            "Pipeline.from_pretrained(base, controlnet=path), or pipe.load_controlnet(path)",
        ),
        row(
            "T2IAdapter MultiAdapter StableDiffusionAdapterPipeline "
            "StableDiffusionXLAdapterPipeline",
            "Pipeline.from_pretrained(base, adapter=path), or pipe.load_t2i_adapter(path)",
        ),
        row("MotionAdapter", NOT_HERE),
    ),
}


def find(place: Place, name: str) -> Habit | None:
    """Find the row of a name; None for a name that diffusers does not have either."""
    return next((habit for habit in TABLE[place] if name in habit.names), None)


def is_off(value: object) -> bool:
    """Whether a value switches something off: None, False, or nothing in a list."""
    return value is None or value is False or (isinstance(value, list | tuple | dict) and not value)


def message(habit: Habit, name: str) -> str:
    """Say that a name is diffusers', and what stands for it."""
    return f"{name} is of diffusers; here: {habit.here.replace('`', '')}"


def translate(
    place: Place,
    function: str,
    given: Mapping[str, Any],
    known: Iterable[str],
    spellings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return keyword arguments as they are named here, without those that have no effect.

    Args:
        function: whose arguments they are, for messages.
        known: its arguments. spellings: other names that people try, such as the command's options.

    Raises UnknownArgumentError for a name that is neither known nor harmless, or given twice.
    """
    known = set(known)
    found: dict[str, Any] = {}
    named: dict[str, str] = {}  # how each was given
    for name, value in given.items():
        own = name
        if name not in known:
            habit = find(place, name)
            if habit is None:
                names = {known_name: known_name for known_name in sorted(known)}
                hint = did_you_mean(name, {**(spellings or {}), **names})
                raise UnknownArgumentError(
                    f"{function} has no argument {name!r}; {hint or f'help({function}) lists all'}"
                )
            if value is None or habit.kind == "ignored" or (habit.kind == "off" and is_off(value)):
                continue
            if habit.kind != "renamed":
                raise UnknownArgumentError(message(habit, name))
            own = habit.to
        if own in found:
            raise UnknownArgumentError(f"{named[own]} and {name} are the same; give one of them")
        found[own], named[own] = value, name
    return found


def accepts_habits(place: Place) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function take the keyword arguments of diffusers' function of that name, too."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = list(inspect.signature(function).parameters)[1:]

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            own: Any = translate(place, function.__name__, kwargs, known)
            return function(*args, **own)

        return call

    return decorate


def markdown() -> str:
    """Render the table for the documentation."""
    effects = {
        "works": "works: {}",
        "renamed": "works: {}",
        "ignored": "accepted, without effect: {}",
        "off": "accepted if None or False: {}",
        "error": "an error: {}",
    }
    lines = ["| diffusers | ldm |", "|---|---|"]
    for place, habits in TABLE.items():
        lines.append(f"| **{TITLES[place]}** | |")
        for habit in habits:
            names = ", ".join(f"`{name}`" for name in habit.names)
            lines.append(f"| {names} | {effects[habit.kind].format(habit.here)} |")
    return "\n".join(lines) + "\n"
