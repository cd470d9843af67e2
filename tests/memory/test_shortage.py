"""Errors of libraries about too little memory are known as such; others are not."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
import torch
from safetensors import SafetensorError

from ldm.cli.common import describe_error
from ldm.errors import CheckpointError, LDMError, NotEnoughMemoryError
from ldm.memory.shortage import is_shortage, names_shortage

SHORTAGES = [
    MemoryError(),
    MemoryError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 9 bytes. Error code 12"),
    RuntimeError("could not create a primitive"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    SafetensorError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
]  # fmt: skip
OTHERS = [
    ValueError("out of memory"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    OSError(errno.ENOSPC, "No space left on device"),
    CheckpointError("the model's name is out of memory"),
    ImportError("No module named 'x'"),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: str(error)[:20])
def test_shortages(error: Exception) -> None:
    assert is_shortage(error)
    message, code = describe_error(error)
    assert message.startswith("not enough memory") and "--batch-size 1" in message
    assert code == 1 and "\n" not in message


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:20])
def test_others(error: Exception) -> None:
    assert not is_shortage(error)
    assert "not enough memory" not in describe_error(error)[0]


def test_a_generator_names_them() -> None:
    @names_shortage
    def steps(error: Exception) -> Iterator[int]:
        yield 1
        raise error

    for error in (RuntimeError("can't allocate memory"), MemoryError()):
        run = steps(error)
        assert next(run) == 1
        with pytest.raises(NotEnoughMemoryError, match="not enough memory") as found:
            next(run)
        assert isinstance(found.value, LDMError) and found.value.__cause__ is error
    run = steps(ValueError("x"))
    next(run)
    with pytest.raises(ValueError, match=r"^x$"):
        next(run)
