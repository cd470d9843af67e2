"""Fine-tunings on two processes that share a batch (DDP) or weights (FSDP2) end as on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.training.checkpoint import checkpoints
from tests.helpers.fine_tuning import tune, tuning_config
from tests.training.test_processes import DDP, ROOT, assert_near, launch, losses

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the run goes on")]
FSDP = ("--config_file", str(ROOT / "configs" / "train" / "fsdp.yaml"))
RECIPES: list[tuple[str, dict[str, Any]]] = [
    ("full", {"train": ["unet", "text_encoder"], "gradient_checkpointing": True}),
    ("lora", {"rank": 2, "train_text_encoder": True}),
    ("pivotal", {"rank": 2, "words": ["<x>"], "caption_prefix": "<x>"}),
]


def settings_for(
    recipe: str, options: dict[str, Any], bases: Any, photographs: Path
) -> dict[str, Any]:
    data = {"size": 64, "held_out": 0}
    return {
        "recipe": recipe,
        "data": str(photographs),
        "options": {"base": str(bases("sd")[0]), "data": data} | options,
    }


@pytest.mark.parametrize(("recipe", "options"), RECIPES)
def test_two_processes_learn_as_one_and_one_goes_on(
    bases: Any, photographs: Path, tmp_path: Path, recipe: str, options: dict[str, Any]
) -> None:
    """Steps 1-3 on two processes that share the batch, 4 on two that share the weights, 5-6 on one.

    Losses within 1e-4 of one process's.
    """
    torch.set_num_threads(1)
    settings = settings_for(recipe, options, bases, photographs)
    whole, run = tmp_path / "whole", tmp_path / "run"
    tune(tuning_config(whole, **settings))
    launch("fine_tuning.py", run, *DDP, steps=3, **settings)
    launch(
        "fine_tuning.py", run, *FSDP, "--fsdp_min_num_params", "300000", steps=4, sharded=True,
        **settings,
    )  # fmt: skip
    tune(tuning_config(run, **settings))
    assert [path.name for path in checkpoints(run)] == ["00000004", "00000006"]
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
    assert_near(run, whole, 2e-3)  # AdamW's first steps are as large as the rate, of any sign
