"""Whole networks of a pipeline, to be trained: full fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ldm.clip import CLIPTextEncoder
from ldm.config.settings import nearest
from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline
from ldm.training.finetuning.texts import unread_layers
from ldm.training.finetuning.trained import Trained


def networks_of(pipe: Pipeline, names: Sequence[str], clip_skip: int) -> Trained:
    """Return networks of a pipeline, made trainable, apart from layers that no picture reads.

    names: of "unet", "text_encoder" and "text_encoder_2". Raises ArgumentError for a name that is
    none of this pipeline's networks, and for none at all.
    """
    encoders = list(pipe.inversions.models)
    known = ["unet", *encoders]
    for name in names:
        if name not in known:
            raise ArgumentError(f"options.train holds {name!r:.60}; {nearest(name, known)}")
    if not names:
        raise ArgumentError(f"options.train is empty; give some of {', '.join(known)}")
    parts: dict[str, nn.Module] = {}
    for name in dict.fromkeys(names):
        network = parts[name] = getattr(pipe, name)
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # a mapped file's memory is not to be written
            parameter.requires_grad_(True)
        if name != "unet":
            freeze_unread(pipe, encoders.index(name), clip_skip)
    return Trained(pipe, parts, clip_skip)


def freeze_unread(pipe: Pipeline, number: int, clip_skip: int) -> None:
    """Freeze what no picture reads of a text encoder, which would get no gradients.

    Processes that share a batch wait for the gradients of all that is trained.
    """
    models = pipe.text_models
    encoder: CLIPTextEncoder = models[number].encoder
    pooled = pipe.xl and number == len(models) - 1  # read to the end: the text's one state
    layers = encoder.text_model.encoder.layers
    unread = unread_layers(number, len(models), pipe.xl, clip_skip)
    dead: list[nn.Module | None] = list(layers[len(layers) - unread :])
    if not pooled:
        dead.append(encoder.text_projection)
        if pipe.xl:
            dead.append(encoder.text_model.final_layer_norm)
    for module in filter(None, dead):
        module.requires_grad_(False)
