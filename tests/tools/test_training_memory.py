"""Memory of trainings: fake tensors are counted as real ones, and cards are those that fit."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.training.checkpointing import checkpoint_blocks
from ldm.training.finetuning.adapters import AdapterOptions, Adapters
from ldm.unet import UNet
from tests.training.test_checkpointing import SMALL
from tools import training_memory
from tools.training_memory import Network, kept, rows


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_fake_tensors_keep_what_real_ones_keep(lora: bool, checkpointed: bool) -> None:
    found = []
    for mode in (FakeTensorMode(), torch.device("cpu")):
        with mode:
            unet = UNet(SMALL)
            trained: torch.nn.Module = unet
            if lora:
                unet.requires_grad_(False)
                trained = Adapters(unet, AdapterOptions(rank=2))
                trained.attach(unet)
            if checkpointed:
                checkpoint_blocks(unet)
            found.append(kept(unet, trained, SMALL, 128))
    assert found[0] == found[1] > 0


def test_a_row_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 Mi float32 weights are 0.25 GiB, with gradients, average and two moments 1.25."""
    layer = torch.nn.Linear(8192, 8192, bias=False, device="meta")
    network = Network(layer, 2**30, {False: 5 * 2**30, True: 2**29})
    monkeypatch.setattr(training_memory, "measure", lambda family, method: network)
    found = rows("sd1", "full")
    assert found[0] == "| sd1 | 512 | full | adamw | yes | no | 2.2 | 5.0 | 7.2 | 12 |"
    assert found[3] == "| sd1 | 512 | full | adamw | no | yes | 2.0 | 0.5 | 2.5 | 8 |"
    assert len(found) == 12
