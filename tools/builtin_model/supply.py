"""Worker processes that compose pictures into memory that they share with the trainer."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from types import TracebackType

import numpy as np

from ldm.errors import TrainingError
from tools.builtin_model.compose import compose, read_vocabulary

BLOCK = 128  # pictures handed over at once
SLOTS = 3  # blocks of memory for each worker: one is filled while the others wait
TOKENS = 77


@dataclass(frozen=True)
class Source:
    """What the workers draw from."""

    archives: Path
    tokenizer: Path
    size: int  # px of a side
    seed: int


class Memory:
    """Blocks of pictures and of their captions' tokens, in a file that processes map.

    A file, as the shared memory of containers is often small.
    """

    def __init__(self, folder: Path, slots: int, size: int, mode: str = "r+") -> None:
        self.pixels = np.memmap(
            folder / "pixels", np.uint8, mode=mode, shape=(slots, BLOCK, size, size, 3)
        )
        self.tokens = np.memmap(
            folder / "tokens", np.uint16, mode=mode, shape=(slots, BLOCK, TOKENS)
        )


class Supply:
    """Pictures without end: use it as a context, in which the workers run.

    Raises TrainingError from `take` when a worker has failed, with what it said.

    Args:
        folder: where the shared memory lies, which nobody else uses.
    """

    def __init__(self, source: Source, workers: int, folder: Path) -> None:
        self.source, self.workers, self.folder = source, workers, folder
        self.count = 0  # pictures taken

    def __enter__(self) -> Supply:
        self.folder.mkdir(parents=True, exist_ok=True)
        slots = self.workers * SLOTS
        self.memory = Memory(self.folder, slots, self.source.size, "w+")
        context = multiprocessing.get_context("spawn")
        self.free: Queue[int] = context.Queue()
        self.ready: Queue[int | str] = context.Queue()
        for slot in range(slots):
            self.free.put(slot)
        shared = (self.source, self.folder, slots, self.free, self.ready)
        self.processes = [
            context.Process(target=work, args=(i, *shared), daemon=True)
            for i in range(self.workers)
        ]
        with one_thread_each():
            for process in self.processes:
                process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
        for shared in (self.free, self.ready):
            shared.cancel_join_thread()
        del self.memory
        shutil.rmtree(self.folder)

    def take(self, timeout: float | None = 0.0) -> tuple[np.ndarray, np.ndarray] | None:
        """One block: uint8 (BLOCK, size, size, 3) and tokens uint16 (BLOCK, 77); copies.

        None where none is ready within `timeout` seconds.
        """
        try:
            slot = self.ready.get(timeout=timeout) if timeout else self.ready.get_nowait()
        except queue.Empty:
            dead = [p for p in self.processes if not p.is_alive()]
            if dead:
                raise TrainingError(
                    f"{len(dead)} of {self.workers} worker processes ended (exit codes "
                    f"{sorted({p.exitcode for p in dead})}); was memory short?"
                ) from None
            return None
        if isinstance(slot, str):
            raise TrainingError(f"a worker process cannot compose pictures: {slot}")
        pixels, tokens = self.memory.pixels[slot].copy(), self.memory.tokens[slot].copy()
        self.free.put(slot)
        self.count += len(pixels)
        return pixels, tokens


def take_free(free: Queue[int]) -> int | None:
    """Wait for the number of a free block; None if the trainer has ended."""
    trainer = multiprocessing.parent_process()
    while trainer is None or trainer.is_alive():
        with contextlib.suppress(queue.Empty):
            return free.get(timeout=2.0)
    return None


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes that begin here compute with one thread each: there is one for each core."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def work(
    worker: int,
    source: Source,
    folder: Path,
    slots: int,
    free: Queue[int],
    ready: Queue[int | str],
) -> None:
    """Fill free blocks until the process is ended; the body of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which ends all
    from ldm.text.tokenizer import CLIPTokenizer

    try:
        vocabulary = read_vocabulary(source.archives)
        tokenizer = CLIPTokenizer.from_pretrained(source.tokenizer)
        memory = Memory(folder, slots, source.size)
        pictures = compose(vocabulary, source.size, source.seed, worker)
        while (slot := take_free(free)) is not None:
            captions = []
            for i in range(BLOCK):
                memory.pixels[slot, i], caption = next(pictures)
                captions.append(caption)
            memory.tokens[slot] = tokenizer(captions)
            ready.put(slot)
    except Exception as error:  # whatever it is, the trainer must hear of it
        ready.put(f"{type(error).__name__}: {error}")
