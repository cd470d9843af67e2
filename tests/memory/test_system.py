"""What this process may still take: the least of all limits, with nested groups of both kinds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ldm.memory import system

V1 = "30 1 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2 = "30 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 700 kB available."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  700 kB\n")
    return tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def groups(root: Path, cgroup: str, mounts: str) -> None:
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mounts)


def test_the_machine_alone(root: Path) -> None:
    assert system.available_memory(root) == 700 * 1024
    (root / "proc/meminfo").unlink()
    assert system.available_memory(root) is None


def test_version_2(root: Path) -> None:
    """A parent's limit counts; the cache of files does not; "max" is none."""
    groups(root, "0::/a/b\n", V2)
    parent, own = root / "sys/fs/cgroup/a", root / "sys/fs/cgroup/a/b"
    write(own, memory__max="max", memory__current=400_000, memory__stat="inactive_file 0")
    assert system.available_memory(root) == 700 * 1024
    write(parent, memory__max=900_000, memory__current=800_000, memory__stat="inactive_file 300000")
    assert system.available_memory(root) == 400_000
    write(own, memory__high=500_000)
    assert system.available_memory(root) == 100_000
    write(own, memory__max=300_000)  # below what is in use
    assert system.available_memory(root) == 0


def test_version_1(root: Path) -> None:
    groups(root, "4:memory:/a\n0::/\n", V1)
    write(
        root / "sys/fs/cgroup/memory/a",
        memory__limit_in_bytes=600_000,
        memory__usage_in_bytes=500_000,
        memory__stat="cache 9\ntotal_inactive_file 200000",
    )
    assert system.available_memory(root) == 300_000
    write(root / "sys/fs/cgroup/memory", memory__limit_in_bytes=2**63 - 4096)  # no limit
    write(root / "sys/fs/cgroup/memory", memory__usage_in_bytes=10)
    assert system.available_memory(root) == 300_000


@pytest.mark.parametrize("cgroup", ["0::/docker/x\n", "0::/\n", "0::/elsewhere\n"])
def test_in_a_container(root: Path, cgroup: str) -> None:
    """The mount begins at the container's own group, whatever the group is called inside."""
    groups(root, cgroup, V2.replace(" / /sys", " /docker/x /sys"))
    write(root / "sys/fs/cgroup", memory__max=300_000, memory__current=100_000)
    assert system.available_memory(root) == 200_000


@pytest.mark.parametrize("text", ["", "nonsense\n", "0::\n", "4:memory\n", "\0" * 50])
def test_damaged_files(root: Path, text: str) -> None:
    groups(root, text, text)
    assert system.available_memory(root) == 700 * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_limit_of_address_space() -> None:
    code = (
        "import resource; from ldm.memory.system import address_space, available_memory;"
        "assert address_space() is None; a, b = resource.getrlimit(resource.RLIMIT_AS);"
        "resource.setrlimit(resource.RLIMIT_AS, (300_000_000, b));"
        "print(address_space(), available_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    left, available = map(int, done.stdout.split())
    assert 200_000_000 < left < 300_000_000
    assert available <= left


@pytest.mark.parametrize("flags", ["avx512_bf16", "avx512_bf16 amx_bf16 amx_tile", None])
def test_amx(root: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None) -> None:
    monkeypatch.setattr(system, "ROOT", root)
    if flags is not None:
        (root / "proc/cpuinfo").write_text(f"flags\t: fpu {flags}\n")
    assert system.has_amx.__wrapped__() == (flags is not None and "amx" in flags)
