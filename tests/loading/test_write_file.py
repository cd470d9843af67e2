"""``ldm-convert`` to float8 and GGUF: what stays finer, round trips, other readers, refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ldm.checkpoints.gguf_header import read_gguf_header
from ldm.checkpoints.number_formats import FORMATS
from ldm.cli import convert
from ldm.errors import ArgumentError, CheckpointError
from ldm.pipeline import Pipeline
from tests.helpers.gguf_files import Type, gguf, quantise, values
from tests.loading.test_quantised_files import LOAD, load
from tests.loading.test_single_file import files  # noqa: F401  # a fixture
from tests.loading.test_supplied_parts import UNET, same

diffusers = pytest.importorskip("diffusers")
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
VAE = "first_stage_model."


def run(*arguments: object) -> int:
    return convert.main(list(map(str, arguments)))


def test_the_command_knows_all_formats() -> None:
    assert set(convert.FORMATS) == set(FORMATS) and set(convert.SHORT.values()) <= set(FORMATS)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl"])
def test_a_single_file_in_float8(files: Any, tmp_path: Path, name: str, dtype: str) -> None:  # noqa: F811
    ours, _, path = files(name)
    out, target = tmp_path / "out.safetensors", getattr(torch, dtype)
    assert run(path, out, "--dtype", dtype) == 0
    before, after = load_file(path), load_file(out)
    assert before.keys() == after.keys()
    for key, value in after.items():
        words = ("embedding", "time_embed", "label_emb")
        finer = value.ndim < 2 or key.startswith(VAE) or any(word in key for word in words)
        finer |= any(f"{UNET}{layer}." in key for layer in ("input_blocks.0", "out"))
        if key != "v_pred":
            assert value.dtype == (torch.float16 if finer else target), key
        assert torch.equal(value.float(), before[key].to(value.dtype).float()), key
    share = sum(v.numel() for v in after.values() if v.dtype == target)
    assert share > 0.2 * sum(v.numel() for k, v in after.items() if not k.startswith(VAE))
    again = load(out)
    assert not same(again, ours)
    again.save_single_file(tmp_path / "again.safetensors", target)
    assert all(
        torch.equal(value.float(), after[key].float())
        for key, value in load_file(tmp_path / "again.safetensors").items()
    )


@pytest.mark.parity
def test_diffusers_reads_a_folder_in_float8(files: Any, tmp_path: Path) -> None:  # noqa: F811
    _, theirs, path = files("sdxl")
    assert run(path, tmp_path / "out", "--dtype", "float8_e4m3fn") == 0
    saved = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    kept = {"conv_in", "conv_out", "time_embedding", "add_embedding"}
    assert {k.split(".")[0] for k, v in saved.items() if v.ndim > 1 and v.dtype != E4M3} == kept
    loaded = type(theirs).from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    ours = load(tmp_path / "out")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        found = getattr(loaded, part).state_dict()
        for key, value in getattr(ours, part).state_dict().items():
            their_key = key if key in found else key.removeprefix("text_model.")
            assert torch.equal(found[their_key], value), f"{part} {key}"


@pytest.mark.parity
def test_diffusers_reads_a_single_file_in_float8(files: Any, tmp_path: Path) -> None:  # noqa: F811
    _, theirs, path = files("sd")
    theirs.save_pretrained(tmp_path / "config")
    assert run(path, tmp_path / "x.safetensors", "--dtype", "float8_e5m2") == 0
    loaded = type(theirs).from_single_file(
        tmp_path / "x.safetensors",
        config=str(tmp_path / "config"),
        local_files_only=True,
        torch_dtype=torch.float32,
    )
    ours = load(tmp_path / "x.safetensors")
    for key, value in ours.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[key], value), key


@pytest.mark.parametrize("kind", ["q8_0", "f16", "bf16", "float32"])
@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl", "refiner"])
def test_gguf(files: Any, tmp_path: Path, name: str, kind: str) -> None:  # noqa: F811
    """The package's own reader finds the original names and the package's own blocks."""
    ours, _, path = files(name)
    out = tmp_path / "out.gguf"
    assert run(path, out, *([] if kind == "q8_0" else ["--dtype", kind])) == 0
    before = load_file(path)
    reader = gguf.GGUFReader(out)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert found.keys() == before.keys()
    most = {"q8_0": Type.Q8_0, "f16": Type.F16, "bf16": Type.BF16, "float32": Type.F32}[kind]
    for key, value in before.items():
        if key in ("v_pred", "ztsnr"):
            continue
        tensor = found[key]
        assert tuple(reversed(tensor.shape.tolist())) == tuple(value.shape)
        want = quantise(value, tensor.tensor_type.name)
        assert (tensor.data == want[0]).all(), key
        if value.ndim < 2:
            assert tensor.tensor_type == Type.F32
        elif most != Type.Q8_0:
            assert tensor.tensor_type == most
        else:
            words = ("embedding", "time_embed", "label_emb", "text_projection")
            kept = value.shape[-1] % 32 or any(word in key for word in words)
            assert tensor.tensor_type == (Type.F16 if kept else Type.Q8_0), key
    again = load(out)
    assert again.scheduler.config.prediction_type == ours.scheduler.config.prediction_type
    weight = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    ours_key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    blocks = quantise(before[weight], found[weight].tensor_type.name)
    assert torch.equal(again.unet.state_dict()[ours_key], values(blocks))
    if kind == "float32":
        assert same(again, ours)
    assert run(out, tmp_path / "back.gguf", "--dtype", kind) == 0
    assert same(load(tmp_path / "back.gguf"), again)


def test_the_architecture_is_comfyuis(files: Any, tmp_path: Path) -> None:  # noqa: F811
    for name, want in (("sd", "sd1"), ("sd2", "sd1"), ("sdxl", "sdxl")):
        ours, _, _ = files(name)
        ours.save_single_file(tmp_path / f"{name}.gguf")
        metadata = read_gguf_header(tmp_path / f"{name}.gguf").metadata
        assert metadata["general.architecture"] == want
        word = {"v_prediction": "v"}.get(ours.scheduler.config.prediction_type, "epsilon")
        assert metadata["modelspec.predict_key"] == word


REFUSED = [
    (["x.safetensors", "--dtype", "q8_0"], "no GGUF; let OUTPUT end in .gguf"),
    (["out", "--dtype", "q8_0"], "no GGUF; let OUTPUT end in .gguf"),
    (["x.gguf", "--dtype", "float8_e5m2"], "is a GGUF, which has q8_0 in its place"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_formats_that_a_file_cannot_have(
    files: Any,  # noqa: F811
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, _, path = files("sd")
    out, *rest = arguments
    assert run(path, tmp_path / out, *rest) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArgumentError, match="which a GGUF does not have; expected one of q8_0"):
        ours.save_single_file(tmp_path / "x.gguf", E4M3)
    with pytest.raises(ArgumentError, match="dtype is q8_0, which only a GGUF has"):
        ours.save_single_file(tmp_path / "x.safetensors", "q8_0")


@pytest.mark.parametrize(
    ("suffix", "dtype", "value"),
    [
        (".safetensors", "float8_e4m3fn", 500.0),
        (".safetensors", "float8_e5m2", float("nan")),
        (".gguf", "q8_0", float("inf")),
        (".gguf", "f16", 1e6),
    ],
)
def test_outputs_are_whole_or_not_at_all(
    files: Any,  # noqa: F811
    tmp_path: Path,
    suffix: str,
    dtype: str,
    value: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, _, path = files("sd")
    ours.unet.get_parameter("mid_block.resnets.0.time_emb_proj.weight").data[0] = value
    out = tmp_path / f"out{suffix}"
    out.write_bytes(b"what was there")
    target: Any = FORMATS[convert.SHORT.get(dtype, dtype)]
    with pytest.raises(CheckpointError, match=r"(time_emb_proj|emb_layers\.1)\.weight has values"):
        ours.save_single_file(out, target)
    assert out.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [out]
    assert run(path, out, "--dtype", dtype) == 1
    assert "already exists" in capsys.readouterr().err
    assert run(path, out, "--dtype", dtype, "--force") == 0
    assert list(tmp_path.iterdir()) == [out]
    assert Pipeline.from_pretrained(out, **LOAD)


def test_without_the_package(
    files: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, _, path = files("sd")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"is needed: pip install 'ldm\[gguf\]'"):
        ours.save_single_file(tmp_path / "x.gguf")
    assert run(path, tmp_path / "x.gguf") == 2
    assert "pip install 'ldm[gguf]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
