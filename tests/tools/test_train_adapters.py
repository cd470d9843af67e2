"""The adapters of the built-in model, trained anew beside a U-Net."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.config import UNetConfig
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from tests.helpers.networks import TINY_BUILTIN
from tools.builtin_model import compose, parts, train, train_adapters
from tools.builtin_model.icons.nouns import Noun, Subject
from tools.builtin_model.icons.sources import Icon

ROOT = Path(__file__).parents[2]


def one_colour(task: train_adapters.Task, folder: Path) -> None:
    """Stand in for composing."""
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", np.full((6, 32, 32, 3), 200, np.uint8))
    rows = [{"caption": "a red car", "split": "train" if i < 4 else "held_out"} for i in range(6)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of a run whose U-Net is there, in small steps."""
    torch.manual_seed(0)
    unet = UNet(UNetConfig.from_dict(TINY_BUILTIN))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    parts.save_in_parts(unet, tmp_path / "run" / "unet", torch.float16)
    small = ("batch_size=2", "sample_every=1000", 'options.prompts=["a red car"]')
    fewer = {"controlnet": small[:2]}
    adapters = [
        replace(a, settings=(*a.settings, *fewer.get(a.name, small)))
        for a in train_adapters.ADAPTERS
    ]
    monkeypatch.setattr(train_adapters, "ADAPTERS", adapters)
    monkeypatch.setattr(train_adapters, "write_composed", one_colour)
    folders = ["--output", str(tmp_path / "run"), "--weights", str(ROOT / "weights")]
    return ["--train", "adapters", "--minutes", "0.0001", *folders, "--device", "cpu"]


def test_every_adapter_is_trained_beside_the_runs_own_network(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(command) == 0
    run = tmp_path / "run"
    assert "controlnet has done 1 of 1800 steps" in capsys.readouterr().err
    pipe = Pipeline.from_pretrained(run / "base", dtype="float32")
    lora = run / "lcm_lora" / "pytorch_lora_weights.safetensors"
    pipe.load_lora_weights(str(lora))
    pipe.load_controlnet(str(run / "controlnet"))
    assert {path.name for path in (run / "ip_adapter").iterdir()} == {"ip_adapter.safetensors"}

    # The same command goes on, by one step here.
    before = lora.read_bytes()
    assert train.main(command) == 0
    assert lora.read_bytes() != before
    assert "lcm_lora has done 2 of 1600 steps" in capsys.readouterr().err


def test_a_run_without_a_network_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command[command.index("--output") + 1] = str(tmp_path / "other")
    assert train.main(command) == 2
    assert "has no unet/; train one first" in capsys.readouterr().err


def test_pictures_are_composed_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = '<rect width="10" height="10" fill="#c00"/>'
    subjects = [
        Subject(Icon("noto", n, None, body, (0, 0, 16, 16)), n, Noun(n, (n,), (n,), common=True))
        for n in ("car", "drum")
    ]
    monkeypatch.setattr(train_adapters, "read_vocabulary", lambda _: compose.weigh(subjects))
    np.save(tmp_path / "images.npy", np.zeros((5, 32, 32, 3), np.uint8))
    captions = train_adapters.write_part(tmp_path / "images.npy", tmp_path, 0, 0, 1, 4)
    images = np.load(tmp_path / "images.npy")
    assert [bool(image.any()) for image in images] == [False, True, True, True, False]
    assert len(captions) == 3 and all("car" in caption or "drum" in caption for caption in captions)
