"""Readers of a model's configurations: its JSON, through the modules that are built of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoints.folder import empty, read_weights
from ldm.classes.classifier import Classifier
from ldm.classes.labels import Classes
from ldm.clip import CLIPTextEncoder
from ldm.clip_vision import CLIPVisionEncoder
from ldm.config import SchedulerConfig, UNetConfig, read_json
from ldm.config.generation import Defaults
from ldm.control.controlnet import ControlNet
from ldm.control.ip_adapter import IPAdapter
from ldm.control.t2i_adapter import T2IAdapter
from ldm.control.union import ControlNetUnion
from ldm.errors import CheckpointError
from ldm.loading.folder import check_no_adapter, has_part, load_folder
from ldm.samplers import choose, plan
from ldm.scheduler import DDPMScheduler
from ldm.taesd import AutoencoderTiny
from ldm.techniques.preview import LinearPreview
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from tests.fuzz.reader import Reader

MODULES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "unet": (
        UNet,
        [
            {
                "_class_name": "UNet2DConditionModel",
                "block_out_channels": [8, 16],
                "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
                "attention_head_dim": [2, 4],
                "cross_attention_dim": 8,
                "norm_num_groups": 4,
                "layers_per_block": 1,
                "transformer_layers_per_block": [1, 2],
                "reverse_transformer_layers_per_block": [[1, 1], [2, 2]],
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 56,
                "time_cond_proj_dim": 4,
                "only_cross_attention": [True, False],
                "num_class_embeds": 4,
            },
            {
                "_class_name": "UNet2DModel",
                "block_out_channels": [8, 16],
                "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
                "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
                "attention_head_dim": 4,
                "norm_num_groups": 4,
                "num_class_embeds": 3,
                "sample_size": 32,
                "resnet_time_scale_shift": "scale_shift",
            },
        ],
    ),
    "vae": (
        AutoencoderKL,
        [{"_class_name": "AutoencoderKL", "block_out_channels": [8, 8], "norm_num_groups": 4,
          "sample_size": 16, "scaling_factor": 0.18, "layers_per_block": 1,
          "down_block_types": ["DownEncoderBlock2D"] * 2,
          "up_block_types": ["UpDecoderBlock2D"] * 2}],
    ),
    "taesd": (
        AutoencoderTiny,
        [{"_class_name": "AutoencoderTiny", "encoder_block_out_channels": [8, 8],
          "decoder_block_out_channels": [8, 8], "num_encoder_blocks": [1, 1],
          "num_decoder_blocks": [1, 1], "scaling_factor": 1.0}],
    ),
    "text encoder": (
        CLIPTextEncoder,
        [{"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 50,
          "intermediate_size": 16, "projection_dim": 8, "hidden_act": "gelu",
          "architectures": ["CLIPTextModelWithProjection"], "eos_token_id": 2}],
    ),
    "image encoder": (
        CLIPVisionEncoder,
        [{"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 16,
          "patch_size": 4, "intermediate_size": 16, "projection_dim": 8},
         {"projection_dim": 8, "vision_config": {"hidden_size": 8, "num_attention_heads": 2}}],
    ),
    "controlnet": (
        ControlNet,
        [{"_class_name": "ControlNetModel", "block_out_channels": [8, 16],
          "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "attention_head_dim": 2,
          "cross_attention_dim": 8, "norm_num_groups": 4, "layers_per_block": 1,
          "conditioning_embedding_out_channels": [4, 8], "conditioning_channels": 3}],
    ),
    "controlnet union": (
        ControlNetUnion,
        [{"_class_name": "ControlNetUnionModel", "block_out_channels": [8, 16],
          "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "attention_head_dim": 2,
          "cross_attention_dim": 8, "norm_num_groups": 4, "layers_per_block": 1,
          "conditioning_embedding_out_channels": [4, 8], "num_control_type": 6,
          "num_trans_channel": 8, "num_trans_head": 2, "num_trans_layer": 1,
          "num_proj_channel": 8, "addition_embed_type": "text_time",
          "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56}],
    ),
    "t2i-adapter": (
        T2IAdapter,
        [{"_class_name": "T2IAdapter", "channels": [8, 8], "num_res_blocks": 1,
          "downscale_factor": 8, "adapter_type": "full_adapter", "in_channels": 3}],
    ),
    "ip-adapter": (
        IPAdapter,
        [{"kind": "plus", "image_width": 8, "cross_attention_dim": 8, "layer_widths": [8, 16],
          "num_tokens": 4, "hidden_size": 64, "num_heads": 1, "num_layers": 1}],
    ),
    "classifier": (
        Classifier,
        [{"_class_name": "Classifier", "block_out_channels": [8, 16], "num_classes": 3,
          "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "attention_head_dim": 4,
          "norm_num_groups": 4, "attn_norm_num_groups": 4, "sample_size": 16,
          "layers_per_block": 1}],
    ),
}  # fmt: skip
SCHEDULERS = [
    {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085,
     "beta_end": 0.012, "num_train_timesteps": 100, "steps_offset": 1, "clip_sample": False,
     "set_alpha_to_one": False, "timestep_spacing": "leading", "prediction_type": "epsilon"},
    {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "solver_order": 2,
     "num_train_timesteps": 50, "trained_betas": None, "rescale_betas_zero_snr": False,
     "final_sigmas_type": "zero", "timestep_spacing": "trailing"},
]  # fmt: skip
TOKENS = (
    *(b"null", b"true", b"NaN", b"Infinity", b"-Infinity", b"1e400", b"1e-400", b"[[", b"{", b"9"),
    *(b"CrossAttnDownBlock2D", b"AttnDownBlock2D", b"_class_name", b"\\ud800", b"\\u0000", b"2.5"),
)


def as_json(rows: list[dict[str, Any]]) -> Callable[[], list[bytes]]:
    """Return what makes the files."""
    return lambda: [json.dumps(row).encode() for row in rows]


def reader_of(name: str) -> Reader:
    """Return the reader of a module's config."""
    module_class, rows = MODULES[name]

    def read(path: Path) -> object:
        config = module_class.config_class.from_file(path)
        config.to_dict()
        return empty(module_class, config)

    def warm_up(folder: Path) -> None:
        """Build a good one: PyTorch imports more when it first computes without values."""
        (folder / "good.json").write_text(json.dumps(rows[0]))
        read(folder / "good.json")

    return Reader(f"config of {name}", as_json(rows), read, "config.json", TOKENS, warm_up)


def read_scheduler(path: Path) -> object:
    """Read a scheduler's config; lay out a run of the sampler that it names, and of another."""
    config = SchedulerConfig.from_file(path)
    config.to_dict()
    scheduler = DDPMScheduler(config)
    choice = choose(config, None)
    return plan(scheduler, choice.name, 4, choice.schedule), plan(scheduler, "dpmpp_2m", 3)


def read_index(path: Path) -> object:
    """Read a model's index, up to its first part, which is missing."""
    index = read_json(path)
    Classes.of(UNetConfig.from_dict(MODULES["unet"][1][1]), None, index.get("id2label"))
    has_part(index, "classifier")
    check_no_adapter(path.parent)
    try:
        load_folder(path.parent, None, torch.device("cpu"))
    except CheckpointError as error:
        if "config.json does not exist" not in str(error):
            raise


def read_preview(path: Path) -> object:
    """Read a map of colours."""
    preview = LinearPreview.of(read_json(path), 4, path)
    return preview(torch.zeros(1, 4, 2, 2))


def with_scheduler(folder: Path) -> None:
    """Put the scheduler's config beside a model's index, and a good adapter's config."""
    (folder / "scheduler").mkdir()
    text = json.dumps(SCHEDULERS[0])
    (folder / "scheduler" / "scheduler_config.json").write_text(text)


def with_shard(folder: Path) -> None:
    """Put a shard beside an index."""
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2), "b": torch.ones(3)}, folder / "one.safetensors")


INDEX = {
    "_class_name": "DDIMPipeline",
    "_diffusers_version": "0.35.0",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
    "id2label": {"0": "a cat, cat", "1": "a dog", "2": "a bird"},
    "force_zeros_for_empty_prompt": True,
}
SHARDS = {
    "metadata": {"total_size": 20},
    "weight_map": {"a": "one.safetensors", "b": "one.safetensors"},
}
DEFAULTS = {"num_inference_steps": 20, "guidance_scale": 7.5, "classifier_scale": 1.0}
PREVIEW = {"weight": [[0.1] * 4] * 3, "bias": [0.1] * 3}

CONFIGS = [
    *map(reader_of, MODULES),
    Reader("config of scheduler", as_json(SCHEDULERS), read_scheduler, "config.json", TOKENS),
    Reader("generation defaults", as_json([DEFAULTS]), Defaults.from_file, "c.json", TOKENS),
    Reader("preview's map", as_json([PREVIEW]), read_preview, "preview.json", TOKENS),
    Reader("model index", as_json([INDEX]), read_index, "model_index.json", TOKENS, with_scheduler),
    Reader("index of shards", as_json([SHARDS]), read_weights, "a.index.json", TOKENS, with_shard),
]
