"""Names and shapes in full-size single files, as the original code builds them from its configs.

Written after the constructors of CompVis/latent-diffusion's openaimodel.py and model.py, OpenCLIP's
transformer.py and transformers' CLIPTextModel, with the values of the published .yaml files; shares
nothing with ldm.
"""

from __future__ import annotations

from typing import Any

Shapes = dict[str, tuple[int, ...]]

UNETS: dict[str, dict[str, Any]] = {
    # v1-inference.yaml
    "sd1": {
        "model_channels": 320, "channel_mult": (1, 2, 4, 4), "attention_resolutions": (4, 2, 1),
        "transformer_depth": (1, 1, 1, 1), "context_dim": 768, "linear": False,
    },
    # v2-inference.yaml, v2-inference-v.yaml
    "sd2": {
        "model_channels": 320, "channel_mult": (1, 2, 4, 4), "attention_resolutions": (4, 2, 1),
        "transformer_depth": (1, 1, 1, 1), "context_dim": 1024, "linear": True,
    },
    # sd_xl_base.yaml
    "sdxl": {
        "model_channels": 320, "channel_mult": (1, 2, 4), "attention_resolutions": (4, 2),
        "transformer_depth": (1, 2, 10), "context_dim": 2048, "linear": True, "adm": 2816,
    },
    # sd_xl_refiner.yaml
    "sdxl_refiner": {
        "model_channels": 384, "channel_mult": (1, 2, 4, 4), "attention_resolutions": (4, 2),
        "transformer_depth": (4, 4, 4, 4), "context_dim": 1280, "linear": True, "adm": 2560,
    },
}  # fmt: skip


def layer(shapes: Shapes, name: str, *shape: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = shape
    if bias:
        shapes[f"{name}.bias"] = shape[:1]


def resblock(shapes: Shapes, name: str, inputs: int, outputs: int, emb: int) -> None:
    layer(shapes, f"{name}.in_layers.0", inputs)
    layer(shapes, f"{name}.in_layers.2", outputs, inputs, 3, 3)
    layer(shapes, f"{name}.emb_layers.1", outputs, emb)
    layer(shapes, f"{name}.out_layers.0", outputs)
    layer(shapes, f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        layer(shapes, f"{name}.skip_connection", outputs, inputs, 1, 1)


def transformer(
    shapes: Shapes, name: str, width: int, depth: int, context: int, linear: bool
) -> None:
    ones = () if linear else (1, 1)
    layer(shapes, f"{name}.norm", width)
    layer(shapes, f"{name}.proj_in", width, width, *ones)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, inputs in (("attn1", width), ("attn2", context)):
            layer(shapes, f"{block}.{attention}.to_q", width, width, bias=False)
            layer(shapes, f"{block}.{attention}.to_k", width, inputs, bias=False)
            layer(shapes, f"{block}.{attention}.to_v", width, inputs, bias=False)
            layer(shapes, f"{block}.{attention}.to_out.0", width, width)
        layer(shapes, f"{block}.ff.net.0.proj", 8 * width, width)
        layer(shapes, f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            layer(shapes, f"{block}.{norm}", width)
    layer(shapes, f"{name}.proj_out", width, width, *ones)


def ends(mc: int, adm: int | None, in_channels: int) -> Shapes:
    """What stands before the levels."""
    shapes: Shapes = {}
    emb = 4 * mc
    layer(shapes, "time_embed.0", emb, mc)
    layer(shapes, "time_embed.2", emb, emb)
    if adm is not None:
        layer(shapes, "label_emb.0.0", emb, adm)
        layer(shapes, "label_emb.0.2", emb, emb)
    layer(shapes, "input_blocks.0.0", mc, in_channels, 3, 3)
    return shapes


def unet(
    model_channels: int,
    channel_mult: tuple[int, ...],
    attention_resolutions: tuple[int, ...],
    transformer_depth: tuple[int, ...],
    context_dim: int,
    linear: bool,
    adm: int | None = None,
    in_channels: int = 4,
) -> Shapes:
    """UNetModel.__init__, with num_res_blocks 2."""
    mc, emb, res = model_channels, 4 * model_channels, 2
    shapes = ends(mc, adm, in_channels)
    ch, ds, n, chans = mc, 1, 1, [mc]
    for level, mult in enumerate(channel_mult):
        for _ in range(res):
            resblock(shapes, f"input_blocks.{n}.0", ch, mult * mc, emb)
            ch = mult * mc
            if ds in attention_resolutions:
                depth = transformer_depth[level]
                transformer(shapes, f"input_blocks.{n}.1", ch, depth, context_dim, linear)
            chans.append(ch)
            n += 1
        if level != len(channel_mult) - 1:
            layer(shapes, f"input_blocks.{n}.0.op", ch, ch, 3, 3)
            chans.append(ch)
            n, ds = n + 1, ds * 2
    resblock(shapes, "middle_block.0", ch, ch, emb)
    transformer(shapes, "middle_block.1", ch, transformer_depth[-1], context_dim, linear)
    resblock(shapes, "middle_block.2", ch, ch, emb)
    n = 0
    for level, mult in reversed(list(enumerate(channel_mult))):
        for i in range(res + 1):
            resblock(shapes, f"output_blocks.{n}.0", ch + chans.pop(), mult * mc, emb)
            ch, inner = mult * mc, 1
            if ds in attention_resolutions:
                depth = transformer_depth[level]
                transformer(shapes, f"output_blocks.{n}.1", ch, depth, context_dim, linear)
                inner = 2
            if level and i == res:
                layer(shapes, f"output_blocks.{n}.{inner}.conv", ch, ch, 3, 3)
                ds //= 2
            n += 1
    layer(shapes, "out.0", ch)
    layer(shapes, "out.2", 4, ch, 3, 3)
    return shapes


# As ComfyUI's model_detection.py lists distilled U-Nets: the depth of each layer on the way down,
# of the middle (-1: a residual block alone, -2: nothing), and of each layer on the way up, which
# are taken from the end.
DISTILLED: dict[str, dict[str, Any]] = {
    "SSD-1B": {
        "base": "sdxl", "res": 2, "mult": (1, 2, 4), "down": [0, 0, 2, 2, 4, 4], "middle": -1,
        "up": [0, 0, 0, 1, 1, 2, 10, 4, 4],
    },
    "Segmind Vega": {
        "base": "sdxl", "res": 2, "mult": (1, 2, 4), "down": [0, 0, 1, 1, 2, 2], "middle": -1,
        "up": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    },
    "KOALA-700M": {
        "base": "sdxl", "res": 1, "mult": (1, 2, 4), "down": [0, 2, 5], "middle": -2,
        "up": [0, 0, 2, 2, 5, 5],
    },
    "KOALA-1B": {
        "base": "sdxl", "res": 1, "mult": (1, 2, 4), "down": [0, 2, 6], "middle": 6,
        "up": [0, 0, 2, 2, 6, 6],
    },
    "BK-SDM-Base": {
        "base": "sd1", "res": 1, "mult": (1, 2, 4, 4), "down": [1, 1, 1, 0], "middle": 1,
        "up": [1, 1, 1, 1, 1, 1, 0, 0],
    },
    "BK-SDM-Small": {
        "base": "sd1", "res": 1, "mult": (1, 2, 4, 4), "down": [1, 1, 1, 0], "middle": -2,
        "up": [1, 1, 1, 1, 1, 1, 0, 0],
    },
    "BK-SDM-Tiny": {
        "base": "sd1", "res": 1, "mult": (1, 2, 4), "down": [1, 1, 1], "middle": -2, "up": [1] * 6,
    },
    "BK-SDM-v2-Tiny": {
        "base": "sd2", "res": 1, "mult": (1, 2, 4), "down": [1, 1, 1], "middle": -2, "up": [1] * 6,
    },
    "SDXS-512-0.9": {
        "base": "sd2", "res": 1, "mult": (1, 2, 4), "down": [1, 1, 1], "middle": -2, "up": [1] * 6,
        "only_cross": 1,
    },
}  # fmt: skip


def distilled(name: str) -> Shapes:
    """ComfyUI's UNetModel.__init__, with the numbers of ``DISTILLED``."""
    spec = DISTILLED[name]
    base = UNETS[spec["base"]]
    context, linear, adm = base["context_dim"], base["linear"], base.get("adm")
    mc, res = base["model_channels"], spec["res"]
    emb = 4 * mc
    shapes = ends(mc, adm, 4)
    down, up, levels = list(spec["down"]), list(spec["up"]), len(spec["mult"])
    ch, n, chans = mc, 1, [mc]

    def attention(name: str, width: int, depth: int, level: int) -> None:
        transformer(shapes, name, width, depth, context, linear)
        if level < spec.get("only_cross", 0):  # disable_self_attentions
            for i in range(depth):
                for part in ("to_k", "to_v"):
                    key = f"{name}.transformer_blocks.{i}.attn1.{part}"
                    layer(shapes, key, width, context, bias=False)

    for level, mult in enumerate(spec["mult"]):
        for _ in range(res):
            resblock(shapes, f"input_blocks.{n}.0", ch, mult * mc, emb)
            ch = mult * mc
            if depth := down.pop(0):
                attention(f"input_blocks.{n}.1", ch, depth, level)
            chans.append(ch)
            n += 1
        if level != levels - 1:
            layer(shapes, f"input_blocks.{n}.0.op", ch, ch, 3, 3)
            chans.append(ch)
            n += 1
    if spec["middle"] >= -1:
        resblock(shapes, "middle_block.0", ch, ch, emb)
    if spec["middle"] > 0:
        transformer(shapes, "middle_block.1", ch, spec["middle"], context, linear)
        resblock(shapes, "middle_block.2", ch, ch, emb)
    n = 0
    for level, mult in reversed(list(enumerate(spec["mult"]))):
        for i in range(res + 1):
            resblock(shapes, f"output_blocks.{n}.0", ch + chans.pop(), mult * mc, emb)
            ch, inner = mult * mc, 1
            if depth := up.pop():
                attention(f"output_blocks.{n}.1", ch, depth, level)
                inner = 2
            if level and i == res:
                layer(shapes, f"output_blocks.{n}.{inner}.conv", ch, ch, 3, 3)
            n += 1
    layer(shapes, "out.0", ch)
    layer(shapes, "out.2", 4, ch, 3, 3)
    return shapes


def vae_block(shapes: Shapes, name: str, inputs: int, outputs: int) -> None:
    layer(shapes, f"{name}.norm1", inputs)
    layer(shapes, f"{name}.conv1", outputs, inputs, 3, 3)
    layer(shapes, f"{name}.norm2", outputs)
    layer(shapes, f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        layer(shapes, f"{name}.nin_shortcut", outputs, inputs, 1, 1)


def vae() -> Shapes:
    """AutoencoderKL's ddconfig: ch 128, ch_mult 1 2 4 4, num_res_blocks 2, z_channels 4."""
    shapes: Shapes = {}
    mult, res = (1, 2, 4, 4), 2

    def middle(name: str, ch: int) -> None:
        vae_block(shapes, f"{name}.mid.block_1", ch, ch)
        layer(shapes, f"{name}.mid.attn_1.norm", ch)
        for part in ("q", "k", "v", "proj_out"):
            layer(shapes, f"{name}.mid.attn_1.{part}", ch, ch, 1, 1)
        vae_block(shapes, f"{name}.mid.block_2", ch, ch)

    ch = 128
    layer(shapes, "encoder.conv_in", ch, 3, 3, 3)
    for level, factor in enumerate(mult):
        for i in range(res):
            vae_block(shapes, f"encoder.down.{level}.block.{i}", ch, 128 * factor)
            ch = 128 * factor
        if level != len(mult) - 1:
            layer(shapes, f"encoder.down.{level}.downsample.conv", ch, ch, 3, 3)
    middle("encoder", ch)
    layer(shapes, "encoder.norm_out", ch)
    layer(shapes, "encoder.conv_out", 8, ch, 3, 3)
    layer(shapes, "decoder.conv_in", ch, 4, 3, 3)
    middle("decoder", ch)
    for level, factor in reversed(list(enumerate(mult))):
        for i in range(res + 1):
            vae_block(shapes, f"decoder.up.{level}.block.{i}", ch, 128 * factor)
            ch = 128 * factor
        if level:
            layer(shapes, f"decoder.up.{level}.upsample.conv", ch, ch, 3, 3)
    layer(shapes, "decoder.norm_out", ch)
    layer(shapes, "decoder.conv_out", 3, ch, 3, 3)
    layer(shapes, "quant_conv", 8, 8, 1, 1)
    layer(shapes, "post_quant_conv", 4, 4, 1, 1)
    return shapes


def clip() -> Shapes:
    """transformers' CLIPTextModel of ViT-L/14, as it was when these files were written."""
    shapes: Shapes = {
        "text_model.embeddings.position_ids": (1, 77),
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.embeddings.position_embedding.weight": (77, 768),
    }
    for i in range(12):
        name = f"text_model.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer(shapes, f"{name}.self_attn.{part}", 768, 768)
        layer(shapes, f"{name}.mlp.fc1", 3072, 768)
        layer(shapes, f"{name}.mlp.fc2", 768, 3072)
        layer(shapes, f"{name}.layer_norm1", 768)
        layer(shapes, f"{name}.layer_norm2", 768)
    layer(shapes, "text_model.final_layer_norm", 768)
    return shapes


def open_clip(width: int, layers: int) -> Shapes:
    """OpenCLIP's text tower: ViT-H-14 (1024, 24) and ViT-bigG-14 (1280, 32)."""
    shapes: Shapes = {
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "token_embedding.weight": (49408, width),
    }
    for i in range(layers):
        name = f"transformer.resblocks.{i}"
        shapes[f"{name}.attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{name}.attn.in_proj_bias"] = (3 * width,)
        layer(shapes, f"{name}.attn.out_proj", width, width)
        layer(shapes, f"{name}.mlp.c_fc", 4 * width, width)
        layer(shapes, f"{name}.mlp.c_proj", width, 4 * width)
        layer(shapes, f"{name}.ln_1", width)
        layer(shapes, f"{name}.ln_2", width)
    layer(shapes, "ln_final", width)
    return shapes


TEXTS = {
    "sd1": {"cond_stage_model.transformer.": clip()},
    "sd2": {"cond_stage_model.model.": open_clip(1024, 24)},
    "sdxl": {
        "conditioner.embedders.0.transformer.": clip(),
        "conditioner.embedders.1.model.": open_clip(1280, 32),
    },
    "sdxl_refiner": {"conditioner.embedders.0.model.": open_clip(1280, 32)},
}


def layout(family: str, in_channels: int = 4) -> Shapes:
    """Everything in a published file of a family, but for its schedule's buffers."""
    parts = {
        "model.diffusion_model.": unet(**UNETS[family], in_channels=in_channels),
        "first_stage_model.": vae(),
        **TEXTS[family],
    }
    return {
        f"{prefix}{name}": shape for prefix, part in parts.items() for name, shape in part.items()
    }
