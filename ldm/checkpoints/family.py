"""The family of a single file, from the names and shapes in it: no tensor is read.

The families are the files of ``configs/models``: the parts' configs as they would be in a folder,
and where the text encoders are in a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.backbones import find_backbone, is_backbone
from ldm.checkpoints.distilled import with_structure
from ldm.checkpoints.kinds import (
    UNSUPPORTED,
    Shapes,
    article,
    find_adapter,
    find_other,
    is_embedding,
    listed,
)
from ldm.checkpoints.lora_first import plain_names
from ldm.checkpoints.lora_kinds import describe_kinds, group, unsupported
from ldm.checkpoints.prediction import (
    EDM,
    KNOWN_PREDICTIONS,
    Beside,
    Statement,
    find_statements,
    has_zero_snr,
)
from ldm.checkpoints.structure import read_structure
from ldm.config import CLIPTextConfig, SchedulerConfig, UNetConfig, VAEConfig, read_json
from ldm.config.scheduler import EDM_REFUSED
from ldm.config.tasks import TASK_NAMES, task_of
from ldm.errors import ArgumentError, CheckpointError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
# The width of the text states that its U-Net reads identifies a family.
FAMILIES = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl_refiner"}
CONTEXT = "transformer_blocks.0.attn2.to_k.weight"
EDITING = ("sd1", "sdxl")  # families of instruct-pix2pix
LATENT = 4  # channels of their latents
UNCLIP_WIDTHS = (1536, 2048)  # of the picture's embedding with its level of noise
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
    beside: Beside | None = None,
) -> Family:
    """Find the family of a file of original names, with what its own tensors and metadata change.

    beside: of the configs beside the file.
    prediction_type: overrides what the file states.
    Raises CheckpointError for a file of something else.
    """
    if prediction_type not in (None, *KNOWN_PREDICTIONS):
        known = ", ".join(map(repr, KNOWN_PREDICTIONS))
        raise ArgumentError(f"prediction_type is {prediction_type!r}; expected one of {known}")
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    widths = [shape[1] for key, shape in shapes.items() if key.endswith(CONTEXT) and len(shape) > 1]
    if first is None or len(first) < 2 or not widths:
        raise CheckpointError(f"{source} {describe_other(shapes)}")
    if task := other_task(shapes):
        raise CheckpointError(
            f"{source} is a U-Net of {task}, which is not supported; give one of "
            + ", ".join(TASK_NAMES.values())
        )
    if widths[0] not in FAMILIES:
        known = ", ".join(map(str, FAMILIES))
        raise CheckpointError(
            f"{source}: its U-Net reads texts of width {widths[0]}; known are {known}"
        )
    family = read_family(FAMILIES[widths[0]])
    if task_of(first[1], LATENT) == "edit" and family.id not in EDITING:
        raise CheckpointError(
            f"{source} is a U-Net of {first[1]} input channels, of which only those of Stable "
            "Diffusion 1.x and XL are known (instruct-pix2pix); its task is not supported"
        )
    statements = find_statements(shapes, metadata, beside)
    check_predictable(statements, source, prediction_type)
    certain = True
    stated = prediction_type or (statements[0].value if statements else None)
    if stated is None:
        inpainting = first[1] != family.unet.in_channels
        stated, certain = usual_prediction(family.id, inpainting, global_step)
    guidance = shapes.get(f"{UNET}time_embed.cond_proj.weight")
    guidance = guidance if guidance is not None and len(guidance) == 2 else None
    unet = replace(
        own_layers(family.unet, shapes, source),
        in_channels=first[1],
        time_cond_proj_dim=None if guidance is None else guidance[1],
    )
    if family.id == "sd2" and stated == "v_prediction":
        unet = replace(unet, sample_size=96)  # the 768 models
    scheduler = replace(family.scheduler, prediction_type=stated)
    if has_zero_snr(shapes, metadata, beside):
        scheduler = replace(scheduler, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    if guidance is not None:
        scheduler = replace(scheduler, sampler_class="LCMScheduler")
    return replace(family, unet=unet, scheduler=scheduler, certain=certain)


def own_layers(unet: UNetConfig, shapes: Shapes, source: str) -> UNetConfig:
    """Return a family's U-Net, with the layers that the file has, if some were distilled away.

    That of a file in which no whole U-Net is seen stays the family's: loading says what is missing.
    """
    structure = read_structure(shapes, UNET)
    try:
        return unet if structure is None else with_structure(unet, structure)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None


def check_predictable(
    statements: Sequence[Statement], source: str, prediction_type: str | None
) -> None:
    """Raise CheckpointError for a U-Net whose prediction is of a kind that cannot be computed.

    A ``prediction_type`` replaces a word that is not understood. It does not replace EDM, where the
    network's inputs and times differ, too.
    """
    for statement in statements:
        if statement.value == EDM:
            raise CheckpointError(f"{source} (by {statement.source}) {EDM_REFUSED}")
    if prediction_type is None and statements and statements[0].value not in KNOWN_PREDICTIONS:
        raise CheckpointError(
            f"{source}: its {statements[0].source} is {statements[0].value!r}, which is not "
            "supported; give a prediction_type in its place"
        )


def usual_prediction(family: str, inpainting: bool, global_step: int | None) -> tuple[str, bool]:
    """Return the prediction type of a family's files that state none, and whether it is certain.

    Only SD 2.x has two, which the training step in a .ckpt tells apart.
    """
    if family != "sd2" or inpainting:
        return "epsilon", True
    return "epsilon" if global_step == BASE_STEPS else "v_prediction", global_step is not None


def other_task(shapes: Shapes) -> str | None:
    """Name what a U-Net under the original names does if it is not supported; else None."""
    first = shapes[f"{UNET}input_blocks.0.0.weight"]
    if len(first) < 2:  # a damaged file
        return None
    if any(".time_stack." in name or ".time_mixer." in name for name in shapes):
        return "Stable Video Diffusion"
    if any(name.startswith(("embedder.model.visual.", "noise_augmentor.")) for name in shapes):
        return "unCLIP (variations of pictures)"
    label = shapes.get(f"{UNET}label_emb.0.0.weight", ())
    if len(label) > 1 and label[1] in UNCLIP_WIDTHS:
        return "unCLIP (variations of pictures)"
    if first[1] == 7 or f"{UNET}label_emb.weight" in shapes:
        return f"the x4 upscaler, of {first[1]} input channels"
    if any(name.startswith("cc_projection.") for name in shapes):
        return "Zero123 (views of an object)"
    if task_of(first[1], LATENT) is None:
        return f"an unknown task, of {first[1]} input channels"
    return None


def describe_other(shapes: Shapes) -> str:
    """Say what a file that is no whole model looks like, and what to do with it."""
    names = listed(shapes)
    if kind := find_adapter(names):
        return f"is {article(kind.name)}, not a model; {kind.advice}"
    groups, unknown = group(plain_names(shapes))
    if kinds := describe_kinds(groups):
        backbone = find_backbone(names, lora=True)
        base = f" for {backbone}" if backbone else ""
        hint = UNSUPPORTED if backbone else "give it beside one: --lora FILE"
        return f"is a {kinds[0]}{base}, not a model; {hint}"
    if others := unsupported(unknown):
        return f"is a {next(iter(others))}, not a model; those are not supported"
    if is_embedding(shapes):
        return "is a textual inversion, not a model; give it beside one: --embedding FILE"
    if kind := find_other(names):
        if is_backbone(kind.name):
            return f"is of {kind.name}, not of Stable Diffusion 1.x, 2.x or XL; {kind.advice}"
        return f"is {article(kind.name)}, not a whole model; {kind.advice}"
    shown = ", ".join(list(shapes)[:3]) or "nothing"
    return f"is not a Stable Diffusion checkpoint: it holds {shown}, …"
