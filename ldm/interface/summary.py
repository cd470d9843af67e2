"""A model in a few lines: what ``repr(pipe)`` shows."""

from __future__ import annotations

from torch import nn

from ldm.errors import LDMError
from ldm.loading.model import Model
from ldm.preparation import choose_sampler

FAMILIES = {  # widths of the text encoders → family
    (768,): "Stable Diffusion 1.x",
    (1024,): "Stable Diffusion 2.x",
    (768, 1280): "Stable Diffusion XL",
    (1280,): "Stable Diffusion XL refiner",
}


def summarize(model: Model) -> str:
    """Return the family, the parts with their sizes, the sampler, the dtype and the device."""
    width, height = model.default_size()[::-1]
    names = ("unet", "vae", "text_encoder", "text_encoder_2", "classifier")
    parts = {name: getattr(model, name) for name in names}
    engine = model.optimized.engine_name
    dtype = str(next(model.unet.parameters()).dtype).removeprefix("torch.")
    rows = {
        "model": f"{model.origin.model or 'put together from parts'}, {family(model)}",
        **{name: describe(part) for name, part in parts.items() if part is not None},
        "draws": f"{width}x{height} pixels, {sampling(model)}",
        "on": f"{model.device}, {dtype}{', 8-bit integers' * model.int8}"
        f"{', 8-bit floating point' * model.fp8}{', 8-bit weights' * model.int8_weights}"
        f"{', optimized' * model.optimized.on}"
        f"{f', by {engine}' if engine else ''}",
    }
    if model.few_steps and model.own_few_steps is not None:
        rows["few steps"] = f"by the model's own LoRA, {model.own_few_steps.lora}"
    if used := [name for name, lora in model.loras.loaded.items() if lora.active]:
        rows["LoRAs"] = ", ".join(used)
    if model.controlnets:
        rows["ControlNets"] = ", ".join(model.controlnets)
    if model.t2i_adapters:
        rows["T2I-Adapters"] = ", ".join(model.t2i_adapters)
    if model.ip_adapters:
        rows["IP-Adapters"] = ", ".join(model.ip_adapters)
    if words := list(model.inversions.loaded):
        rows["words"] = ", ".join(words)
    return "\n".join([f"{type(model).__name__}(", *(f"  {k}: {v}" for k, v in rows.items()), ")"])


def family(model: Model) -> str:
    """Name the family of a model."""
    if model.classes is not None:
        what = f"{model.classes.count} classes" if model.classes.count else "pictures"
        return f"{what}, without text"
    widths = tuple(text.encoder.config.hidden_size for text in model.text_models)
    name = FAMILIES.get(widths, "of Stable Diffusion's form")
    return f"{name}{', inpainting' * model.inpaints}"


def describe(part: nn.Module) -> str:
    """Return a part's class and its number of parameters."""
    count = sum(parameter.numel() for parameter in part.parameters())
    millions = f"{count / 1e6:.1f}M" if count >= 50_000 else f"{count:,}"
    return f"{type(part).__name__}, {millions} parameters"


def sampling(model: Model) -> str:
    """Return the model's own sampler and defaults."""
    steps, scale = model.defaults.num_inference_steps, model.defaults.guidance_scale
    try:
        choice = choose_sampler(model, None)
    except LDMError:  # of a scheduler that is unknown here
        return f"no sampler of its own, {steps} steps, guidance {scale:g}"
    return f"{choice.name} ({choice.schedule}), {steps} steps, guidance {scale:g}"
