"""Folders of weights: every variant that tools have written loads, every broken one says why."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.cast import cast
from ldm.checkpoints.folder import load_component, save_component
from ldm.checkpoints.names import OLD_ATTENTION, to_ours
from ldm.checkpoints.source import choose_files, find_model
from ldm.checkpoints.tensors import read_tensors, write_tensors
from ldm.clip import CLIPTextEncoder
from ldm.errors import CheckpointError
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from tests.helpers.networks import difference

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def vae(folder: Path, tmp_path: Path) -> Path:
    """A VAE's folder to break."""
    return Path(shutil.copytree(folder / "vae", tmp_path / "vae"))


def load(path: Path) -> AutoencoderKL:
    return load_component(AutoencoderKL, path, torch.float32)


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of a component's folder."""
    file = path / f"{WEIGHTS}.safetensors"
    tensors = {key: value.clone() for key, value in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def one_line(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def same(a: torch.nn.Module, tensors: dict[str, Tensor]) -> bool:
    ours = a.state_dict()
    return ours.keys() == tensors.keys() and all(torch.equal(ours[k], tensors[k]) for k in ours)


# What loads


def test_a_folder_loads_ready_to_use(vae: Path) -> None:
    module = load(vae)
    assert same(module, load_file(vae / f"{WEIGHTS}.safetensors"))
    assert not module.training
    assert not any(p.requires_grad or p.is_meta for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_is_converted(vae: Path, dtype: torch.dtype) -> None:
    module = load_component(AutoencoderKL, vae, dtype)
    assert {value.dtype for value in module.state_dict().values()} == {dtype}


def test_half_precision_variant(vae: Path) -> None:
    file = vae / f"{WEIGHTS}.safetensors"
    half = {key: value.half() for key, value in load_file(file).items()}
    save_file(half, vae / f"{WEIGHTS}.fp16.safetensors")
    full = load_file(file)
    assert same(load(vae), full)  # the plain one has more digits
    small = {key: value.float() for key, value in half.items()}
    assert same(load_component(AutoencoderKL, vae, torch.float32, variant="fp16"), small)
    with pytest.warns(UserWarning, match="no weights of the variant 'ema': .* is taken"):
        load_component(AutoencoderKL, vae, torch.float32, variant="ema")
    file.unlink()
    assert same(load(vae), small)


@pytest.mark.parametrize("name", [f"{WEIGHTS}.bin", f"{WEIGHTS}.fp16.bin"])
@pytest.mark.parametrize("zipped", [True, False])  # False: as PyTorch wrote before 1.6
def test_bin(vae: Path, name: str, zipped: bool) -> None:
    file = vae / f"{WEIGHTS}.safetensors"
    tensors = load_file(file)
    torch.save(tensors, vae / name, _use_new_zipfile_serialization=zipped)
    file.unlink()
    assert same(load(vae), tensors)


@pytest.mark.parametrize("name", ["model.bin", "pytorch_model.bin"])
def test_bin_of_a_text_encoder(folder: Path, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copytree(folder / "text_encoder", tmp_path / "text_encoder"))
    want = load_component(CLIPTextEncoder, path, torch.float32).state_dict()
    torch.save(load_file(path / "model.safetensors"), path / name)
    (path / "model.safetensors").unlink()
    assert same(load_component(CLIPTextEncoder, path, torch.float32), want)


def test_old_attention_names_of_the_vae(vae: Path) -> None:
    want = load_file(vae / f"{WEIGHTS}.safetensors")
    renamed = []

    def age(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            for old, new in OLD_ATTENTION.items():
                if f"attentions.0.{new}." in key:
                    renamed.append(key)
                    tensors[key.replace(new, old)] = tensors.pop(key)

    rewrite(vae, age)
    assert len(renamed) == 16  # weight and bias of four layers, in encoder and decoder
    assert same(load(vae), want)


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("position_ids", [False, True])
def test_text_encoder_names(folder: Path, tmp_path: Path, prefix: str, position_ids: bool) -> None:
    path = Path(shutil.copytree(folder / "text_encoder", tmp_path / "text_encoder"))
    want = load_component(CLIPTextEncoder, path, torch.float32).state_dict()
    tensors = {prefix + key.removeprefix("text_model."): value for key, value in want.items()}
    if position_ids:
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, path / "model.safetensors")
    assert same(load_component(CLIPTextEncoder, path, torch.float32), want)


def test_projection_keeps_its_name() -> None:
    """It is beside the text model, with or without the prefix."""
    ours = ["text_model.final_layer_norm.weight", "text_projection.weight"]
    for prefix in ("", "text_model."):
        keys = [f"{prefix}final_layer_norm.weight", "text_projection.weight"]
        assert list(to_ours({key: torch.zeros(1) for key in keys}, ours)) == ours


# What does not


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unet does not exist") as caught:
        load_component(UNet, tmp_path / "unet", torch.float32)
    one_line(caught)


def test_missing_files(vae: Path) -> None:
    (vae / f"{WEIGHTS}.safetensors").rename(vae / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no weights") as caught:
        load(vae)
    message = one_line(caught)
    assert f"{WEIGHTS}.safetensors" in message
    assert message.endswith("found config.json, other.safetensors")
    (vae / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        load(vae)


@pytest.mark.parametrize("kept", [0, 1, 7, 9, 200, 0.5, -1])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_truncated(vae: Path, kept: float, suffix: str) -> None:
    file = vae / f"{WEIGHTS}.safetensors"
    if suffix == "bin":
        tensors = load_file(file)
        file.unlink()
        file = vae / f"{WEIGHTS}.bin"
        torch.save(tensors, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept) if kept == 0.5 else int(kept)])
    with pytest.raises(CheckpointError, match=r"get it again|get the \.safetensors") as caught:
        load(vae)
    assert str(file) in one_line(caught)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_not_a_weight_file(vae: Path, suffix: str) -> None:
    (vae / f"{WEIGHTS}.safetensors").unlink()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 3438167540\n"
    (vae / f"{WEIGHTS}.{suffix}").write_bytes(pointer)
    with pytest.raises(CheckpointError) as caught:
        load(vae)
    assert f"{WEIGHTS}.{suffix}" in one_line(caught)


class Code:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused(vae: Path, tmp_path: Path, zipped: bool) -> None:
    file, proof = vae / f"{WEIGHTS}.bin", tmp_path / "it ran"
    if zipped:
        torch.save({"weight": torch.zeros(1), "code": Code(proof)}, file)
    else:
        file.write_bytes(pickle.dumps({"code": Code(proof)}))
    (vae / f"{WEIGHTS}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"would run posix\.mkdir") as caught:
        load(vae)
    assert str(file) in one_line(caught)
    assert not proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(1)],
        {"state_dict": {"weight": [torch.zeros(1)]}},
        {3: torch.zeros(1)},
        {"x": torch.zeros(1).expand(10**6, 10**6)},
        {"x": torch.sparse_coo_tensor([[0]], [1.0], (10**9,), check_invariants=True)},
    ],
)
def test_a_pickle_of_something_else(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "a.bin"
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"a\.bin does not hold a plain mapping"):
        read_tensors(file)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["quant_conv.weight"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["quant_conv.gain"] = torch.zeros(1)


def reshape(tensors: dict[str, Tensor]) -> None:
    tensors["quant_conv.weight"] = torch.zeros(8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"lacks quant_conv\.weight;"),
        (add, r"has unknown quant_conv\.gain;"),
        (reshape, r"shapes: quant_conv\.weight \(8, 8\) instead of \(8, 8, 1, 1\);"),
    ],
)
def test_tensors_that_do_not_fit(
    vae: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    rewrite(vae, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(vae)
    assert f"{WEIGHTS}.safetensors" in one_line(caught)


def test_a_config_of_another_size(vae: Path) -> None:
    path = vae / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"block_out_channels": [16, 16, 32, 64]}))
    with pytest.raises(CheckpointError, match=r"lacks .* and \d+ more; it does not fit"):
        load(vae)


def test_weights_of_another_component(folder: Path, vae: Path) -> None:
    shutil.copy(folder / "unet" / f"{WEIGHTS}.safetensors", vae)
    with pytest.raises(CheckpointError, match=r"lacks .* and \d+ more; it does not fit"):
        load(vae)


# Saving


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize(
    ("name", "module_class", "library"),
    [
        ("unet", UNet, "diffusers.UNet2DConditionModel"),
        ("vae", AutoencoderKL, "diffusers.AutoencoderKL"),
        ("text_encoder", CLIPTextEncoder, "transformers.CLIPTextModel"),
    ],
)
def test_the_references_load_what_we_save(
    folder: Path,
    tmp_path: Path,
    name: str,
    module_class: Any,
    library: str,
    dtype: torch.dtype | None,
) -> None:
    ours = load_component(module_class, folder / name, torch.float32)
    save_component(ours, tmp_path / name, dtype)
    package, cls = library.split(".")
    theirs, info = getattr(pytest.importorskip(package), cls).from_pretrained(
        tmp_path / name, output_loading_info=True, torch_dtype=torch.float32
    )
    assert not any(info.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    got = to_ours(theirs.state_dict(), ours.state_dict())
    want = {key: value.to(dtype or value.dtype).float() for key, value in ours.state_dict().items()}
    assert got.keys() == want.keys()
    assert max(difference(got[key], want[key]) for key in want) == 0
    again = load_component(module_class, tmp_path / name, torch.float32)
    assert same(again, want)
    assert again.config == ours.config


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors({"a": torch.ones(2)}, path)

    def full_disk(tensors: Any, partial: Path, metadata: Any) -> None:
        Path(partial).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm.checkpoints.tensors.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_tensors({"a": torch.zeros(2)}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert read_tensors(path)["a"].tolist() == [1, 1]


def test_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors"):
        write_tensors({"a": torch.ones(2)}, tmp_path / "missing" / "model.safetensors")


# Where a model is


def test_built_in_model() -> None:
    assert find_model(None) == asset_path("weights")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("models/mine", "./models/mine", "~/models/mine", tmp_path / "models/mine"):
        assert find_model(name).resolve() == tmp_path / "models" / "mine"


@pytest.mark.parametrize("model", ["nothing", "/no/where", "./a/b", "a/b/c", "../a", "a b/c"])
def test_no_such_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist; give a") as caught:
        find_model(model)
    one_line(caught)


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    """A hub cache that holds ``folder`` as the model someone/model."""
    commit, repo = "0" * 40, tmp_path / "cache" / "models--someone--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repo / "snapshots" / commit)
    return repo.parent


def test_hub_model_in_the_cache(cache: Path) -> None:
    for local in (True, False):
        found = find_model("someone/model", cache_dir=str(cache), local_files_only=local)
        assert (found / "model_index.json").is_file()


@pytest.mark.parametrize(
    "names",
    [{"HF_HUB_CACHE": "cache"}, {"HF_HOME": "."}, {"HF_HUB_CACHE": "cache", "HF_HUB_OFFLINE": "1"}],
)
def test_environment_variables_of_the_hub(cache: Path, names: dict[str, str]) -> None:
    if "HF_HOME" in names:
        cache = cache.rename(cache.with_name("hub"))
    values = {
        name: value if value == "1" else str(cache.parent / value) for name, value in names.items()
    }
    code = "from ldm.checkpoints.source import find_model; print(find_model('someone/model'))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | values, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).parent.parent == cache / "models--someone--model"


@pytest.mark.parametrize("local", [True, False])
def test_hub_model_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no folder someone/model.*give a") as e:
        find_model("someone/model", cache_dir=str(tmp_path), local_files_only=local)
    one_line(e)


FILES = [
    "README.md",
    "model_index.json",
    "v1.safetensors",
    "unet/config.json",
    "tokenizer/merges.txt",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.bin",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.fp16-00001-of-00001.safetensors",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
]


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        (
            None,
            """unet/diffusion_pytorch_model.safetensors vae/diffusion_pytorch_model.bin
            text_encoder/model-00001-of-00002.safetensors
            text_encoder/model-00002-of-00002.safetensors""",
        ),
        (
            "fp16",
            """unet/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.fp16.bin
            text_encoder/model.fp16-00001-of-00001.safetensors""",
        ),
        (
            "non_ema",
            """unet/diffusion_pytorch_model.non_ema.safetensors vae/diffusion_pytorch_model.bin
            text_encoder/model-00001-of-00002.safetensors
            text_encoder/model-00002-of-00002.safetensors""",
        ),
    ],
)
def test_what_is_downloaded(variant: str | None, weights: str) -> None:
    """Each part's weights once; neither other frameworks' files nor the safety checker."""
    small = ["model_index.json", "unet/config.json", "tokenizer/merges.txt"]
    assert sorted(choose_files(FILES, variant)) == sorted([*small, *weights.split()])


@pytest.mark.parametrize("chunk", [7, 1 << 18])
def test_casts_are_pytorchs(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.checkpoints.cast.CHUNK", chunk)
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[every.isfinite()]
    for x in (every, every[:6150].view(5, 1230).t(), every[:0], every[3], every.float()):
        for dtype in (torch.bfloat16, torch.float32, None):
            got, want = cast(x, dtype), x.to(dtype or x.dtype)
            assert got.dtype == want.dtype
            assert torch.equal(got, want)
