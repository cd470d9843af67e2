"""The soak of the server, for some seconds."""

import pytest

pytest.importorskip("fastapi")
from tools.server_soak import Tally, soak


@pytest.mark.slow
def test_soak() -> None:
    """Every kind of client: none waits in vain, and nothing is drawn for those who left."""
    tally, code, log = soak(8, clients=6, seed=1)
    assert tally.failures == [] and code == 0 and "Traceback" not in log
    assert tally.jobs > 3 and tally.memory


def test_failures_are_noted() -> None:
    tally = Tally()
    tally.check(True, "right")
    tally.check(False, "wrong")
    assert tally.failures == ["wrong"]
