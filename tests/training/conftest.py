"""What the tests of training share."""

from pathlib import Path

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
