"""How much memory this process may still take: of the machine, of its cgroups, of its limits."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")  # another one in tests
# The files of a cgroup: its limits, what is in use, and the field of memory.stat that counts the
# cache of files, which is given up before a process is ended.
VERSION_1 = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = (("memory.max", "memory.high"), "memory.current", "inactive_file")
STACK = 8 << 20  # bytes of address space of a thread, where the limit of stacks is none


def available_memory(root: Path | None = None) -> int | None:
    """Count the bytes that this process may still take; None if that is not known.

    It is the least of what the machine has, of each cgroup of the process up to the root (versions
    1 and 2), and of ``ulimit -v`` and ``ulimit -d``. What the C library keeps counts as taken: see
    ``ldm.memory.thrift``.
    """
    root = ROOT if root is None else root
    limits = [*_machine(root), *_cgroups(root)]
    if root == Path("/"):
        limits += _own_limits()
    return None if not limits else max(0, min(limits))


@functools.cache
def has_amx() -> bool:
    """Whether the processor multiplies bfloat16 in tiles (AMX)."""
    with contextlib.suppress(OSError):
        return "amx_bf16" in (ROOT / "proc/cpuinfo").read_text()
    return False


def gigabytes(count: float) -> str:
    """Write a number of bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def address_space() -> int | None:
    """Count the bytes that ``ulimit -v`` leaves to this process; None without such a limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            return most - _pages(0)
    return None


def _own_limits() -> Iterator[int]:
    """Yield what ``ulimit -v`` and ``ulimit -d`` leave, without the stacks of threads to come."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        for limit, field in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
            most, _ = resource.getrlimit(limit)
            if most != resource.RLIM_INFINITY:
                yield most - _pages(field) - _stacks()


def _stacks() -> int:
    """Count the address space of the threads that PyTorch is still to start."""
    torch = sys.modules.get("torch")
    wanted = torch.get_num_threads() if torch else (os.cpu_count() or 1)
    import resource

    size, _ = resource.getrlimit(resource.RLIMIT_STACK)
    running = len(os.listdir("/proc/self/task"))  # noqa: PTH208  # names alone
    each = STACK if size == resource.RLIM_INFINITY else size
    return each * max(0, wanted - running)


def _pages(field: int) -> int:
    """Return bytes of /proc/self/statm: 0 is the address space, 5 data and stack."""
    pages = Path("/proc/self/statm").read_text().split()[field]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _machine(root: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError, KeyError):
        yield _fields(root / "proc/meminfo", ":")["MemAvailable"] * 1024


def _cgroups(root: Path) -> Iterator[int]:
    """Yield what each cgroup of this process leaves, from its own up to the root."""
    with contextlib.suppress(OSError, ValueError):
        own = dict(_own_groups(root))
        for mount, within, version in _mounts(root):
            if version not in own:
                continue
            # A container's mount begins at a group of its own, which may have another name inside.
            inside = own[version].removeprefix(within) if own[version].startswith(within) else ""
            places = [mount, *(mount / part for part in _ancestors(inside.strip("/")))]
            names = VERSION_1 if version == 1 else VERSION_2
            for place in places:
                with contextlib.suppress(OSError, ValueError):
                    yield from _left(place, *names)


def _ancestors(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _own_groups(root: Path) -> Iterator[tuple[int, str]]:
    """Yield the (version, path) of this process's cgroups that limit memory."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield 2, path
        elif "memory" in controllers.split(","):
            yield 1, path


def _mounts(root: Path) -> Iterator[tuple[Path, str, int]]:
    """Yield where the cgroups are: (folder, path of the group that it shows, version)."""
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        fields, about = place.split(), kind.split()
        if len(fields) < 5 or not about:
            continue
        within = "" if fields[3] == "/" else fields[3]
        if about[0] == "cgroup2":
            yield root / fields[4].lstrip("/"), within, 2
        elif about[0] == "cgroup" and "memory" in about[-1].split(","):
            yield root / fields[4].lstrip("/"), within, 1


def _left(place: Path, limits: tuple[str, ...], usage: str, cache: str) -> Iterator[int]:
    """Yield what one cgroup leaves by each of its limits."""
    for name in limits:
        with contextlib.suppress(OSError):
            most = (place / name).read_text().strip()
            if most == "max":
                continue
            used = int((place / usage).read_text())
            reclaimable = 0
            with contextlib.suppress(OSError, KeyError):
                reclaimable = _fields(place / "memory.stat", " ")[cache]
            yield int(most) - max(0, used - reclaimable)


def _fields(path: Path, separator: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    lines = (line.partition(separator) for line in path.read_text().splitlines())
    return {name: int(value.split()[0]) for name, _, value in lines if value.strip()}
