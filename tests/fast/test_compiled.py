"""What was compiled is kept on disk, where the next process finds it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.fast.compiled import CACHE, cache_folder, keep_compiled

SCRIPT = """
import json, os, torch
from torch._dynamo.utils import counters  # which sets the variable
from ldm.fast.compiled import compile_regions
from ldm.layers import ResnetBlock

class Tiny(ResnetBlock):
    def forward(self, x):
        return x * 2 + 1

block = Tiny(4, 4, 2, 1e-5)
compile_regions(block)
with torch.no_grad():
    assert torch.equal(block(torch.ones(3)), torch.full((3,), 3.0))
print(json.dumps({
    **{name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss")},
    "folder": os.environ["TORCHINDUCTOR_CACHE_DIR"],
}))
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(CACHE, "")  # so that it is restored
    monkeypatch.delenv(CACHE)


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},  # no pool of processes
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    folder = tmp_path / "cache" / "ldm" / "inductor"
    assert found[0] == {"hit": 0, "miss": 1, "folder": str(folder)}
    assert found[1] == {"hit": 1, "miss": 0, "folder": str(folder)}
    assert any(folder.rglob("*"))


def test_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_compiled()
    folder = tmp_path / "cache" / "ldm" / "inductor"
    assert os.environ[CACHE] == str(folder) == str(cache_folder())
    if os.name == "posix":
        assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ldm" / "inductor"


def test_a_folder_of_the_users_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, "/mine")
    keep_compiled()
    assert os.environ[CACHE] == "/mine" and not (tmp_path / "cache").exists()


def test_the_compilers_default_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    monkeypatch.setenv(CACHE, default_cache_dir())
    keep_compiled()
    assert os.environ[CACHE] == str(cache_folder())


def test_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(UserWarning, match=f"cannot be made .*set {CACHE} to another one"):
        keep_compiled()
    assert CACHE not in os.environ
