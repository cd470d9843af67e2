"""Too small an address space is one line, before PyTorch is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ldm.errors import NotEnoughMemoryError
from ldm.memory import start

LIMITED = (
    "import resource, sys; _, b = resource.getrlimit(resource.RLIMIT_AS);"
    "resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv.pop(1)), b));"
    "from ldm.cli.generate import main; sys.exit(main())"
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.parametrize("limit", [200, 300, 500, 700])
def test_address_space(limit: int) -> None:
    command = [sys.executable, "-c", LIMITED, str(limit * 10**6), "a red car"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the limit of address space (ulimit -v) leaves")


def test_what_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    need = start.OTHERS + start.libraries_size()
    assert start.libraries_size() > 100_000_000
    for left in (None, need):
        monkeypatch.setattr(start, "address_space", lambda n=left: n)
        start.check_start()
    monkeypatch.setattr(start, "address_space", lambda: need - 1)
    with pytest.raises(NotEnoughMemoryError, match="ulimit -v"):
        start.check_start()
