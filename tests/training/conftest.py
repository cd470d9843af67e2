"""What the tests of training share."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> None:
    """Forget the number format of the run before: accelerate keeps it for the whole process."""
    AcceleratorState._reset_state()
