"""``ldm-generate --from picture.png``: draw again with the arguments in a picture's file."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoints.model_folder import find_model
from ldm.cli.controlnets import (
    KINDS,
    Control,
    Preprocessed,
    control_option,
    has_scale,
    labels,
    original,
    read_given_control,
    split_scale,
)
from ldm.cli.fields import DEFAULTS, FILES, from_option, recorded, to_option
from ldm.cli.guidance_options import hires_upscaler
from ldm.cli.options import NAMED, defaults, parser, read
from ldm.cli.streams import picture_source
from ldm.config.upscalers import upscaler_name
from ldm.errors import ArgumentError, ImageError
from ldm.samplers import read_names

if TYPE_CHECKING:
    from PIL.Image import Image

    from ldm.cli.jobs import Job
    from ldm.images.generation_info import GenerationInfo
    from ldm.pipeline import Pipeline

# Arguments of Pipeline.from_pretrained.
LOADING = ("ema", "variant", "prediction_type", "dtype", "int8", "fp8", "int8_weights", "few_steps")
# Options that do not change the picture …
AROUND = recorded("never") | {
    "from_file",
    "output",
    "force",
    "dry_run",
    "quiet",
    "debug",
    "lora_dir",
    "partial_lora",
    "device",
    "optimize",
    "compile",
    "offload",
    "engine",
    "sequential_offload",
    "grid",
    "no_labels",
    "batch_size",
    "save_steps",
    "save_control",
    "animation",
    "explain",
    "preview_vae",
    "x",
    "y",
    "prompts",
    "skip_existing",
    "list_samplers",
    NAMED,
    "json",
    "processes",
    "threads",
    "model_dir",
    "choices",
    "wildcards",
    "all",
}
# … and those that a file records in another form.
IN_ANOTHER_FORM = recorded("another") | {
    *("model", "refiner", "vae", "text_encoder", "lora", "embedding", "controlnet", "t2i_adapter"),
    *("ip_adapter", "image_encoder", "fast"),
}
# Any other option changes the picture, so that its place in a batch does not matter any more.
SAME_PICTURE = AROUND - {"num_images", "batch_size", "grid", "x", "y"} | {
    *FILES,
    "model",
    "refiner",
    "vae",
    "text_encoder",
    "embedding",
    "controlnet",
    "t2i_adapter",
    "ip_adapter",
    "image_encoder",
}


def with_file(
    arguments: argparse.Namespace,
    argv: Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> argparse.Namespace:
    """Merge the file of ``--from`` into the arguments, which take precedence over it.

    settings: the user's defaults, which do not change what the picture shows.
    Warns of settings in the file that are not supported. Raises ImageError for a file without
    settings, ArgumentError if a model or an image that it was made with is missing.
    """
    if arguments.from_file is None:
        return arguments
    if arguments.prompts is not None:
        raise ArgumentError("--prompts takes all texts from a file; leave --from out")
    from ldm.images.generation_info import read_generation_info

    path = Path(arguments.from_file)
    info = read_generation_info(path)
    given = given_options(argv)
    around = {name: value for name, value in (settings or {}).items() if name in AROUND}
    merged = argparse.Namespace(**vars(_from_info(info, path)) | around | given)
    if "model" not in given:
        merged.model = _find_model(info, (settings or {}).get("model"), merged.model_dir)
    scales = {kind.option: kind.scale for kind in KINDS} | {"ip_adapter": "ip_adapter_scale"}
    for option, scale in scales.items():
        if has_scale(given.get(option, []), option) and scale not in given:
            setattr(merged, scale, None)  # those behind the paths
    place_batch(info, merged, given, path)
    if "prompt" not in given:
        merged.templates = {info.arguments.get("prompt", ""): info.template}
        if not {"choices", "wildcards", "all"} & given.keys():  # its text is drawn already
            merged.choices = False
    if info.grid:
        warnings.warn(f"{path} shows several pictures; the first is drawn again", stacklevel=2)
    if merged.optimize is None:
        merged.optimize = info.optimize
    if merged.engine is None:
        merged.engine = info.engine
    _check_missing(info, given, path)
    _check_inputs(info, merged, path)
    if info.notes:
        warnings.warn(
            f"{path} asks for what is not done here, so the picture will be another: "
            + ", ".join(info.notes),
            stacklevel=2,
        )
    return merged


def place_batch(
    info: GenerationInfo, arguments: argparse.Namespace, given: Mapping[str, Any], path: Path
) -> None:
    """Set in which batch the picture is drawn: in its own if that makes it the same, or alone.

    A style-aligned picture also keeps its batch with other settings, unless that is another.
    """
    again = SAME_PICTURE.issuperset(given)
    if info.batch_prompts and arguments.style_aligned:
        again = not {"prompt", "num_images", "batch_size", "grid", "x", "y"} & given.keys()
        if not again:
            warnings.warn(
                f"{path} was drawn in the style of another picture, without which it is now drawn",
                stacklevel=3,
            )
        arguments.batch_prompts = info.batch_prompts if again else ()
    arguments.replay = info.batch if again else (1, 0)


def info_of(job: Job, pipe: Pipeline, picture: Image) -> GenerationInfo:
    """Return the settings that a picture's file records if it was drawn alone."""
    from ldm.images.generation_info import GenerationInfo, model_name
    from ldm.output.record import unusual_optimize

    arguments = job.line.arguments
    settings = sorted((given_settings(arguments) | found_settings(job, pipe, picture)).items())
    files = {name: getattr(arguments, name) for name in FILES if getattr(arguments, name)}
    return GenerationInfo(
        {name: value for name, value in settings if name not in LOADING},
        {name: value for name, value in settings if name in LOADING},
        model=model_name(arguments.model),
        refiner=model_name(arguments.refiner) if arguments.refiner else None,
        vae=model_name(arguments.vae) if arguments.vae else None,
        embeddings=tuple(Path(file).stem for file in arguments.embedding),
        text_encoders=tuple(model_name(file) for file in arguments.text_encoder),
        controlnets=tuple(
            pipe.origin.controlnets[name]
            for name in pipe.used_controlnets(bool(arguments.control_image))
        ),
        preprocessors=labels(arguments),
        t2i_adapters=tuple(pipe.origin.t2i_adapters.values()),
        ip_adapters=tuple(pipe.origin.ip_adapters.values()),
        images={name: _digest(name, file) for name, file in files.items()},
        optimize=unusual_optimize(pipe),
        engine=pipe.optimized.engine_name,
        template=job.template,
    )


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a picture's file records, in JSON's types."""
    left_out = AROUND | IN_ANOTHER_FORM | {"replay", "templates", "batch_prompts"}
    if arguments.image is None:
        left_out |= {"strength"}
    left_out |= {name for name in recorded("changed") if getattr(arguments, name) == DEFAULTS[name]}
    return {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else from_option(name, value)
        for name, value in vars(arguments).items()
        if value is not None and name not in left_out
    }


def found_settings(job: Job, pipe: Pipeline, picture: Image) -> dict[str, Any]:
    """Return the settings that the model and the picture determine instead of the options."""
    arguments = job.line.arguments
    choice = pipe.choose_sampler(arguments.sampler, arguments.schedule)
    found = {
        "prompt": job.prompt,
        "seed": job.seed,
        "int8": pipe.int8,
        "fp8": pipe.fp8,
        "int8_weights": pipe.int8_weights,
        "few_steps": pipe.few_steps,
        "sampler": choice.name,
        "schedule": choice.schedule,
    }
    if arguments.hires_upscaler is not None:  # a model by its name, wherever it is
        found["hires_upscaler"] = upscaler_name(hires_upscaler(arguments))
    if job.variation_seed is not None:
        found["variation_seed"] = job.variation_seed
    if arguments.hires_scale is None and arguments.outpaint is None:  # else of the first pass, …
        found |= {"width": picture.width, "height": picture.height}
    advised = ["num_inference_steps", "guidance_scale"]
    if pipe.classifier and job.text.strip():
        advised.append("classifier_scale")
    if pipe.edits:
        advised.append("image_guidance_scale")
    missing = [name for name in advised if getattr(arguments, name) is None]
    return found | {name: getattr(pipe.defaults, name) for name in missing}


def given_options(argv: Sequence[str]) -> dict[str, Any]:
    """Return the options that the command line gives, without the defaults."""
    given = vars(read(argv, unset=True))
    return {name: value for name, value in given.items() if value is not None and value != []}


def _find_model(info: GenerationInfo, usual: str | None, folder: Path | None) -> str | None:
    """Return the path of the model that a picture was drawn with, if the user's settings have it.

    usual: the user's default model; folder: of models.
    """
    from ldm.images.generation_info import BUILT_IN, model_name

    if info.model == BUILT_IN:
        return None
    if usual is not None and info.model in (None, model_name(usual)):
        return usual
    if info.model is None or folder is None:
        return None
    try:
        found = find_model(info.model, folder)
    except ArgumentError:
        return None
    return found if found is not None and Path(found).exists() else None


def _from_info(info: GenerationInfo, path: Path) -> argparse.Namespace:
    """Return the arguments of a command line with all settings of a file."""
    settings = info.arguments | info.loading
    prompt, argv, newer = settings.pop("prompt", ""), [], []
    zeros = {name: None for name, value in settings.items() if value is None}
    for name, value in settings.items():
        if name in zeros:
            continue
        if name not in defaults() or name in AROUND | IN_ANOTHER_FORM:
            newer.append(name)
        else:
            argv += as_options(name, value)
    try:
        arguments = parser().parse_args(argv)
        read_names(arguments.sampler, arguments.schedule)
    except ArgumentError as error:
        raise ImageError(f"{path}: {error}") from None
    if newer:
        warnings.warn(
            f"{path} was drawn with what this version of ldm does not know: {', '.join(newer)}",
            stacklevel=2,
        )
    arguments.prompt = [str(prompt)]
    return argparse.Namespace(**vars(arguments) | zeros)


def as_options(name: str, value: object) -> list[str]:
    """Return the command-line form of a setting of a file."""
    option, value = name.replace("_", "-"), to_option(name, value)
    default = defaults()[name]
    if isinstance(default, bool):
        if bool(value) == default:
            return []
        return [f"--no-{option}" if default else f"--{option}"]
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return [f"--{option}={value!r}" if isinstance(value, float) else f"--{option}={value}"]


def _check_missing(info: GenerationInfo, given: dict[str, Any], path: Path) -> None:
    """Raise ArgumentError for what a picture of Python needs, and no option stands in place of."""
    stand_ins = {
        "generator": "seed",
        "latents": "seed",
        **dict.fromkeys(("prompt_embeds", "pooled_prompt_embeds"), "prompt"),
        "negative_prompt_embeds": "negative_prompt",
        "ip_adapter_image_embeds": "ip_adapter_image",
        "negative_pooled_prompt_embeds": "negative_prompt",
    }
    for name in info.missing:
        option = stand_ins.get(name)
        if option is None:
            raise ArgumentError(
                f"{path} was drawn in Python with {name}, for which there is no option; draw it "
                "there"
            )
        if option not in given:
            other = "a prompt" if option == "prompt" else f"a --{option.replace('_', '-')}"
            raise ArgumentError(
                f"{path} was drawn in Python with {name}, which no file holds; draw it there, or "
                f"give {other} for another picture"
            )


def _check_inputs(info: GenerationInfo, arguments: argparse.Namespace, path: Path) -> None:
    """Compare model, VAE, embeddings and images with those that the picture was drawn with."""
    from ldm.images.generation_info import (
        BUILT_IN,
        OWN_CONTROLNET,
        adapter_name,
        controlnet_name,
        model_name,
    )

    used = model_name(arguments.model)
    if info.model is None:
        warnings.warn(f"{path} names no model; {used} is used", stacklevel=3)
    elif arguments.model is None and info.model != BUILT_IN:
        raise ArgumentError(
            f"{path} was drawn with the model {info.model!r}; say with --model where it is"
        )
    elif info.model != used:
        warnings.warn(
            f"{path} was drawn with the model {info.model!r}, not with {used!r}", stacklevel=3
        )
    if info.refiner is not None and arguments.refiner is None:
        raise ArgumentError(
            f"{path} was drawn with the refiner {info.refiner!r}; say with --refiner where it is"
        )
    steering = {
        kind: [name for name in getattr(info, f"{kind.option}s") if name != OWN_CONTROLNET]
        for kind in KINDS
    }
    for kind, drawn_with in steering.items():
        if len(drawn_with) > len(getattr(arguments, kind.option)):
            shown = " and ".join(map(repr, drawn_with))
            raise ArgumentError(
                f"{path} was drawn with the {kind.name} {shown}; say with {kind.flag} where it is"
            )
    if len(info.ip_adapters) > len(arguments.ip_adapter):
        shown = " and ".join(map(repr, info.ip_adapters))
        raise ArgumentError(
            f"{path} was drawn with the IP-Adapter {shown}; say with --ip-adapter where it is"
        )
    wanted = {
        "--ip-adapter": info.ip_adapters,
        **{kind.flag: drawn_with for kind, drawn_with in steering.items()},
        "--refiner": info.refiner and [info.refiner],
        "--vae": info.vae and [info.vae],
        "--text-encoder": info.text_encoders,
        "--embedding": info.embeddings,
    }
    files = {
        "--ip-adapter": [
            adapter_name(split_scale(text, "--ip-adapter")[0]) for text in arguments.ip_adapter
        ],
        **{
            kind.flag: [
                controlnet_name(split_scale(text, kind.flag)[0])
                for text in getattr(arguments, kind.option)
            ]
            for kind in KINDS
        },
        "--refiner": [arguments.refiner] if arguments.refiner else [],
        "--vae": [arguments.vae] if arguments.vae else [],
        "--text-encoder": arguments.text_encoder,
        "--embedding": arguments.embedding,
    }
    for option, names in wanted.items():
        here = {Path(file).stem for file in files[option]}
        for name in names or ():
            if name not in here and Path(name).stem not in here:
                warnings.warn(
                    f"{path} was drawn with {name!r}; for the same picture give it with {option}",
                    stacklevel=3,
                )
    _check_images(info, arguments, path)


def _check_images(info: GenerationInfo, arguments: argparse.Namespace, path: Path) -> None:
    """Raise ArgumentError for a missing image; warn of another than the file was drawn from."""
    for name, known in info.images.items():
        file, option = getattr(arguments, name, None), name.replace("_", "-")
        if name == "control_image" and info.preprocessors:
            option = " and ".join(map(control_option, info.preprocessors))[2:]
        if file is None:
            raise ArgumentError(
                f"{path} was drawn from a picture that is not in it; give that with --{option}"
            )
        if name == "control_image" and labels(arguments) != info.preprocessors:
            wanted = info.preprocessors or [""] * len(file)
            warnings.warn(
                f"{path} was drawn with another preprocessor; for the same picture give "
                + " and ".join(map(control_option, wanted)),
                stacklevel=4,
            )
        if known and _digest(name, file) != known:
            warnings.warn(
                f"{path} was drawn from another --{option} than {shown(file)}, so the picture will "
                "be another",
                stacklevel=4,
            )


def shown(file: str | list[Control]) -> str:
    """Return the names of files for messages."""
    return " and ".join(map(str, file)) if isinstance(file, list) else file


def _digest(name: str, file: Control | list[Control]) -> str:
    """Return the digest of an input picture, or of several; a mask's counts its transparency."""
    if isinstance(file, list):
        return ",".join(_digest(name, each) for each in file)
    from ldm.images.files import digest
    from ldm.images.generation_info import given_digest

    if isinstance(file, Preprocessed):
        return digest(original(read_given_control(file)))
    return given_digest(name, picture_source(file))
