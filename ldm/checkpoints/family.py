"""The family of a single file, from the names and shapes in it: no tensor is read.

The families are the files of ``configs/models``: the parts' configs as they would be in a folder,
and where the text encoders are in a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.lora_kinds import describe_kinds, group, unsupported
from ldm.config import CLIPTextConfig, SchedulerConfig, UNetConfig, VAEConfig, read_json
from ldm.errors import ArgumentError, CheckpointError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
Shapes = Mapping[str, Sequence[int]]
# The width of the text states that its U-Net reads identifies a family.
FAMILIES = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl_refiner"}
CONTEXT = "transformer_blocks.0.attn2.to_k.weight"
KNOWN_PREDICTIONS = ("epsilon", "v_prediction", "sample")
STATED_PREDICTION = "modelspec.prediction_type"
PREDICTION_SPELLINGS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction"}
BASE_STEPS = 875_000  # "global_step" of SD 2.x base in its .ckpt: it predicts ε, the others v


@dataclass(frozen=True)
class TextPart:
    """One text encoder of a family."""

    part: str  # "text_encoder" or "text_encoder_2"
    prefix: str  # of its names in a file
    names: str  # "clip" or "open_clip"
    pad_token: str
    config: CLIPTextConfig


@dataclass(frozen=True)
class Family:
    """Everything that the configs of a folder state."""

    id: str
    name: str
    unet: UNetConfig
    vae: VAEConfig
    scheduler: SchedulerConfig
    texts: tuple[TextPart, ...]
    force_zeros_for_empty_prompt: bool = False
    certain: bool = True  # whether the prediction type is known, not guessed


def read_family(name: str) -> Family:
    """Read a file of ``configs/models`` by its name."""
    path = asset_path("configs") / "models" / f"{name}.json"
    data = read_json(path)
    texts = (
        TextPart(**{**text, "config": CLIPTextConfig.from_dict(text["config"], str(path))})
        for text in data["texts"]
    )
    return Family(
        name,
        data["name"],
        UNetConfig.from_dict(data["unet"], str(path)),
        VAEConfig.from_dict(data["vae"], str(path)),
        SchedulerConfig.from_dict(data["scheduler"], str(path)),
        tuple(texts),
        data.get("force_zeros_for_empty_prompt", False),
    )


def detect(
    shapes: Shapes,
    metadata: Mapping[str, str],
    source: str,
    global_step: int | None = None,
    prediction_type: str | None = None,
) -> Family:
    """Find the family of a file of original names, with what its own tensors and metadata change.

    ``prediction_type`` overrides what the file states. Raises CheckpointError for a file of
    something else.
    """
    if prediction_type not in (None, *KNOWN_PREDICTIONS):
        known = ", ".join(map(repr, KNOWN_PREDICTIONS))
        raise ArgumentError(f"prediction_type is {prediction_type!r}; expected one of {known}")
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    widths = [shape[1] for key, shape in shapes.items() if key.endswith(CONTEXT)]
    if first is None or not widths:
        raise CheckpointError(f"{source} {describe_other(shapes)}")
    if widths[0] not in FAMILIES:
        known = ", ".join(map(str, FAMILIES))
        raise CheckpointError(
            f"{source}: its U-Net reads texts of width {widths[0]}; known are {known}"
        )
    family = read_family(FAMILIES[widths[0]])
    stated = prediction_type or stated_prediction(shapes, metadata)
    certain = True
    if stated is None:
        inpainting = first[1] != family.unet.in_channels
        stated, certain = usual_prediction(family.id, inpainting, global_step)
    if stated not in KNOWN_PREDICTIONS:
        raise CheckpointError(
            f"{source}: its {STATED_PREDICTION} is {stated!r}, which is not supported; "
            "give a prediction_type in its place"
        )
    guidance = shapes.get(f"{UNET}time_embed.cond_proj.weight")
    unet = replace(
        family.unet,
        in_channels=first[1],
        time_cond_proj_dim=None if guidance is None else guidance[1],
    )
    if family.id == "sd2" and stated == "v_prediction":
        unet = replace(unet, sample_size=96)  # the 768 models
    scheduler = replace(family.scheduler, prediction_type=stated)
    if "ztsnr" in shapes or metadata.get("ztsnr", "").lower() == "true":
        scheduler = replace(scheduler, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    if guidance is not None:
        scheduler = replace(scheduler, sampler_class="LCMScheduler")
    return replace(family, unet=unet, scheduler=scheduler, certain=certain)


def usual_prediction(family: str, inpainting: bool, global_step: int | None) -> tuple[str, bool]:
    """Return the prediction type of a family's files that state none, and whether it is certain.

    Only SD 2.x has two, which the training step in a .ckpt tells apart.
    """
    if family != "sd2" or inpainting:
        return "epsilon", True
    return "epsilon" if global_step == BASE_STEPS else "v_prediction", global_step is not None


def stated_prediction(shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """Return the prediction type that a file's marker keys or its metadata state."""
    if "v_pred" in shapes:
        return "v_prediction"
    stated = metadata.get(STATED_PREDICTION, "").lower()
    return PREDICTION_SPELLINGS.get(stated, stated or None)


def describe_other(shapes: Shapes) -> str:
    """Say what a file that is no whole model looks like, and what to do with it."""
    names = list(shapes)
    groups, unknown = group(shapes)
    if kinds := describe_kinds(groups):
        return f"is a {kinds[0]}, not a model; give it beside one: --lora FILE"
    if others := unsupported(unknown):
        return f"is a {next(iter(others))}, not a model; those are not supported"
    if any("control_model." in name or "controlnet_cond" in name for name in names):
        return "is a ControlNet, not a model; those are not supported yet"
    if any(name.startswith("down_blocks.") for name in names):
        return "is a U-Net of a diffusers folder; give the folder with model_index.json"
    if any(name.startswith(("decoder.", f"{VAE}decoder.")) for name in names):
        return "is a VAE, not a model; give it beside one: --vae FILE"
    if "emb_params" in shapes or len(names) <= 2:
        return "is a textual inversion, not a model; give it beside one: --embedding FILE"
    shown = ", ".join(names[:3]) or "nothing"
    return f"is not a Stable Diffusion checkpoint: it holds {shown}, …"
