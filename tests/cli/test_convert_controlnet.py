"""``ldm convert`` of ControlNets, and ControlNets in a model's place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.checkpoints.family import read_family
from ldm.checkpoints.folder import empty
from ldm.cli.common import FAILED, USAGE
from ldm.cli.convert import main as convert
from ldm.cli.generate import main as generate
from ldm.config import ControlNetConfig
from ldm.control.controlnet import ControlNet
from tests.control.test_union import union_for
from tests.helpers.controlnets import controlnet_for

Saved = tuple[Path, Any]


@pytest.fixture(scope="module")
def saved(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A folder with a small model, a ControlNet and a ControlNet-Union; the ControlNet."""
    folder = tmp_path_factory.mktemp("convert")
    _, theirs = models("sd")
    theirs.save_pretrained(folder / "model")
    network = controlnet_for(theirs)
    network.save_pretrained(folder / "net")
    _, xl = models("sdxl")
    union_for(xl).save_pretrained(folder / "union")
    return folder, network


def test_there_and_back(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' folder → the authors' names → diffusers' folder: the same tensors."""
    from ldm.loading import controlnet as loading

    folder, network = saved
    single, again = tmp_path / "net.safetensors", tmp_path / "again"
    assert convert([str(folder / "net"), str(single)]) == 0
    theirs = load_file(single)
    assert all(name.startswith("control_model.") for name in theirs)
    assert "control_model.input_hint_block.0.weight" in theirs
    # Families are known by the width of their texts, which small models have another of.
    unet = ControlNetConfig.from_dict(dict(network.config))
    monkeypatch.setattr("ldm.loading.write_controlnet.config_of", lambda *_: unet)
    monkeypatch.setattr(loading, "config_of", lambda *_: unet)
    assert convert([str(single), str(again)]) == 0
    found = load_file(again / "diffusion_pytorch_model.safetensors")
    want = network.state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(value, want[name]) for name, value in found.items())
    assert type(network).from_pretrained(again).config.cross_attention_dim


def test_dtype_and_union(saved: Saved, tmp_path: Path) -> None:
    folder, _ = saved
    half = tmp_path / "half"
    assert convert([str(folder / "net"), str(half), "--dtype", "float16"]) == 0
    tensors = load_file(half / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert convert([str(folder / "union"), str(tmp_path / "union.safetensors")]) == 0
    assert "task_embedding" in load_file(tmp_path / "union.safetensors")


def test_whole_families_map() -> None:
    for name in ("sd1", "sd2", "sdxl"):
        config = ControlNetConfig.like(read_family(name).unet)
        assert empty(ControlNet, config).state_dict()


def test_what_is_refused(
    saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = saved
    monkeypatch.chdir(tmp_path)
    lora = {"lora_controlnet": torch.zeros(1), "input_hint_block.0.weight": torch.zeros(4, 3, 3, 3)}
    stem = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    for name, tensors in {
        "control-lora": lora,
        "lllite": {f"{stem}.down.0.weight": torch.zeros(2, 2)},
        "t2i": {"adapter.body.0.resnets.0.block1.weight": torch.zeros(2, 2, 3, 3)},
        "ip": {"image_proj.proj.weight": torch.zeros(2, 2), "ip_adapter.1.x": torch.zeros(2)},
        "control": {"control_model.input_hint_block.0.weight": torch.zeros(4, 3, 3, 3)},
    }.items():
        save_file(tensors, f"{name}.safetensors")
    for source, message in (
        ("control-lora", "is a Control-LoRA, which says only how"),
        ("lllite", "is a ControlNet-LLLite, not a model; give it beside one: --controlnet FILE"),
        ("t2i", "is a T2I-Adapter"),
        ("ip", "is an IP-Adapter"),
    ):
        assert convert([f"{source}.safetensors", "out"]) in (FAILED, USAGE)
        assert message in capsys.readouterr().err
        assert not Path("out").exists()
    # A ControlNet in a model's place, and the other way round: each names the option.
    for model in (folder / "net", "control.safetensors"):
        assert generate(["a", "-m", str(model), "-o", "x.png"]) == FAILED
        assert "--controlnet" in capsys.readouterr().err
    Path("a.png").write_bytes(
        (Path(__file__).parents[2] / "tools/pictures/sketch.png").read_bytes()
    )
    argv = ["a", "-m", str(folder / "model"), "--control-image", "a.png", "-o", "x.png"]
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, "m.safetensors")
    for network in (str(folder / "model"), "m.safetensors"):
        assert generate([*argv, "--controlnet", network]) == FAILED
        assert "give it as the model: --model" in capsys.readouterr().err
