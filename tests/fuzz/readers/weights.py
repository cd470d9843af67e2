"""Files of weights that are loaded into a very small model: parts, adapters, whole models."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ldm.adapters.lora import Loras
from ldm.adapters.textual_inversion import TextualInversions
from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.folder import load_component
from ldm.config import write_json
from ldm.loading.single_file import names_of
from ldm.text.conditioning import TextModel
from ldm.text.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from tests.fuzz import tiny
from tests.fuzz.reader import Reader

CPU = torch.device("cpu")
SCALE = 8  # pixels for each of the latents
DTYPE = torch.float32


def check_weights(module: nn.Module, finite: bool = False) -> None:
    """Fail for weights that are no real numbers, or not there."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        assert not value.is_meta and value.is_floating_point(), name
        assert not finite or value.isfinite().all(), name


def saved(tables: Mapping[str, Mapping[str, Tensor]]) -> list[bytes]:
    return [
        save({k: v.contiguous().clone() for k, v in table.items()}) for table in tables.values()
    ]


def pickled(tables: Mapping[str, Mapping[str, Tensor]]) -> list[bytes]:
    found = []
    for table in tables.values():
        buffer = io.BytesIO()
        torch.save(dict(table), buffer)
        found.append(buffer.getvalue())
    return found


def read_controlnet(path: Path) -> None:
    from ldm.loading.control_lllite import is_control_lllite
    from ldm.loading.controlnet import check_latents, load_controlnet

    with tiny.known():
        if is_control_lllite(path):
            read_lllite(path)
            return
        base = tiny.model("unet").state_dict
        network = load_controlnet(path, tiny.family().unet, DTYPE, CPU, base)
        check_latents(path, network.config, 4, SCALE)
    check_weights(network)


def read_lllite(path: Path) -> None:
    from ldm.loading.control_lllite import load_control_lllite

    unet: UNet = tiny.model("unet")  # type: ignore[assignment]
    with tiny.known():
        check_weights(load_control_lllite(path, unet, SCALE, DTYPE, CPU), finite=True)


def read_t2i_adapter(path: Path) -> None:
    from ldm.loading.t2i_adapter import load_t2i_adapter

    with tiny.known():
        check_weights(load_t2i_adapter(path, tiny.family().unet, SCALE, DTYPE, CPU), finite=True)


def read_ip_adapter(path: Path) -> None:
    from ldm.loading.ip_adapter import load_ip_adapter

    with tiny.known():
        check_weights(load_ip_adapter(path, tiny.family().unet, DTYPE, CPU), finite=True)


def read_image_encoder(path: Path) -> None:
    from ldm.config import IPAdapterConfig
    from ldm.loading.image_encoder import KNOWN, load_image_encoder

    adapter = IPAdapterConfig.like(tiny.family().unet, image_width=6, num_tokens=2)
    with mock.patch.dict(KNOWN, {12: (3, "gelu")}):
        check_weights(load_image_encoder(path, adapter, DTYPE, CPU))


def read_vae(path: Path) -> None:
    from ldm.loading.vae import load_vae

    check_weights(load_vae(path, tiny.family().vae, DTYPE, CPU))


def read_text_encoder(path: Path) -> None:
    from ldm.loading.supplied import load_text_encoders

    wanted = {"text_encoder": tiny.family().texts[0].config}
    for module in load_text_encoders([path], wanted, DTYPE, CPU).values():
        check_weights(module)


def read_single_file(path: Path) -> None:
    from ldm.loading.single_file import load_file

    with tiny.known():
        for part in load_file(path, DTYPE, CPU).values():
            if isinstance(part, nn.Module):
                check_weights(part)


def unet_folder(folder: Path) -> None:
    """Put a config beside the weights."""
    write_json(folder / "config.json", tiny.family().unet.to_dict())


def read_unet(path: Path) -> None:
    check_weights(load_component(UNet, path.parent, DTYPE))


def shards(folder: Path) -> None:
    """Put a config and two shards beside the index."""
    unet_folder(folder)
    tensors = list(tiny.parts()["unet"].items())
    for i, half in enumerate((tensors[:30], tensors[30:])):
        (folder / f"diffusion_pytorch_model-{i}.safetensors").write_bytes(save(dict(half)))


def indexes() -> list[bytes]:
    names = list(tiny.parts()["unet"])
    places = {n: f"diffusion_pytorch_model-{int(i >= 30)}.safetensors" for i, n in enumerate(names)}
    return [json.dumps({"metadata": {}, "weight_map": places}).encode()]


@cache
def adapted() -> tuple[Loras, TextualInversions]:
    """The adapters of a model with small parts."""
    words = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
    encoder = tiny.model("text_encoder")
    inversions = TextualInversions({"text_encoder": TextModel(words, encoder)})  # type: ignore[arg-type]
    unet = tiny.model("unet")
    rename = names_of(tiny.family().unet)
    return Loras({"unet": unet, "text_encoder": encoder}, rename, inversions), inversions


def build(_: Path) -> None:
    """Build the model before the first case, whose time is measured."""
    adapted()


def read_lora(path: Path) -> None:
    loras, _ = adapted()
    with tiny.known():
        try:
            loras.load(path, "x", 0.7)
            check_weights(tiny.model("unet"), finite=True)
        finally:
            loras.unload()
    assert not loras.base and not loras.base_biases


def read_inversion(path: Path) -> None:
    _, inversions = adapted()
    try:
        inversions.load(path)
    finally:
        inversions.unload()


def embeddings() -> list[bytes]:
    vectors = torch.ones(2, tiny.WIDTH)
    return [
        *saved({"a": {"emb_params": vectors}, "b": {"<cat>": vectors[0]},
                "c": {"emp_params": vectors, "emp_params_out": vectors},
                "d": {"<a>": vectors, "<b>": vectors[:1]}}),
        *pickled({"a": {"<cat>": vectors[0]},
                  "b": {"string_to_param": torch.nn.ParameterDict({"*": vectors}), "name": "x"}}),
    ]  # fmt: skip


def of(part: str, original: str = "") -> Callable[[], list[bytes]]:
    """Return seeds of one part: as a file of its own names, and by the original ones."""

    def make() -> list[bytes]:
        tables = {"ours": tiny.parts()[part]}
        if original:
            whole = tiny.single_file()
            tables["original"] = {
                k.removeprefix(original): v for k, v in whole.items() if k.startswith(original)
            }
        return [*saved(tables), *pickled(tables)]

    return make


SAFE, ZIP = "case.safetensors", "case.ckpt"
WEIGHTS = [
    Reader("LoRA", lambda: saved(tiny.loras()), read_lora, SAFE, surroundings=build),
    Reader("LoRA in a pickle", lambda: pickled(tiny.loras()), read_lora, "case.pt",
           surroundings=build),
    Reader("textual inversion", embeddings, read_inversion, "case.pt", surroundings=build),
    Reader("ControlNet", lambda: saved(tiny.controlnets()), read_controlnet, SAFE, slow=True),
    Reader("ControlNet-LLLite", lambda: saved({"": tiny.lllite()}), read_controlnet, SAFE),
    Reader("T2I-Adapter", lambda: saved(tiny.t2i_adapters()), read_t2i_adapter, SAFE),
    Reader("IP-Adapter", lambda: saved(tiny.ip_adapters()), read_ip_adapter, SAFE),
    Reader("image encoder", lambda: saved({"": tiny.image_encoder()}), read_image_encoder, SAFE),
    Reader("VAE", of("vae", "first_stage_model."), read_vae, SAFE, slow=True),
    Reader("TAESD", lambda: saved({"": tiny.taesd()}), read_vae, SAFE, slow=True),
    Reader("text encoder", of("text_encoder"), read_text_encoder, SAFE),
    Reader("U-Net in a folder", of("unet"), read_unet, "diffusion_pytorch_model.safetensors",
           surroundings=unet_folder, slow=True),
    Reader("shards", indexes, read_unet, "diffusion_pytorch_model.safetensors.index.json",
           surroundings=shards, slow=True),
    Reader("single file", lambda: saved({"": tiny.single_file()}), read_single_file, SAFE,
           slow=True),
    Reader("single file in a pickle", lambda: pickled({"": tiny.single_file()}), read_single_file,
           ZIP, slow=True),
]  # fmt: skip
