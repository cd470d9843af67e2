"""What the tests of training share."""

import copy
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from tests.helpers.toy_latents import save_parts


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> None:
    """Forget the number format of the run before: accelerate keeps it for the whole process."""
    AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved VAE and text encoder of ``toy_latents``."""
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def bases(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a family's model, with diffusers' pipeline."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(family: str) -> tuple[Path, Any]:
        if family not in made:
            _, theirs = models(family)
            made[family] = tmp_path_factory.mktemp(family), copy.deepcopy(theirs)
            theirs.save_pretrained(made[family][0])
        return made[family]

    return get
