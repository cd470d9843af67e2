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
from typing import Literal, TypeAlias

import numpy as np

from ldm.errors import TrainingError
from tools.builtin_model.compose import compose, read_vocabulary
from tools.builtin_model.list_words import write_words

BLOCK = 128  # pictures handed over at once
SLOTS = 3  # blocks of memory for each worker: one is filled while the others wait
TOKENS = 77
Mode: TypeAlias = Literal["r+", "w+"]  # of a file that is there, of a new one


@dataclass(frozen=True)
class Source:
    """What the workers draw from."""

    archives: Path
    tokenizer: Path
    size: int  # px of a side
    seed: int
    words: Path | None = None  # file for the list of what is drawn, which one worker writes


@dataclass(frozen=True)
class Failure:
    """The message of a worker that cannot go on."""

    reason: str


class Memory:
    """Blocks of pictures and of their captions' tokens, in a file that processes map.

    A file, as the shared memory of containers is often small.
    """

    def __init__(self, folder: Path, slots: int, size: int, mode: Mode = "r+") -> None:
        self.pixels = np.memmap(
            folder / "pixels", np.uint8, mode=mode, shape=(slots, BLOCK, size, size, 3)
        )
        self.tokens = np.memmap(
            folder / "tokens", np.uint16, mode=mode, shape=(slots, BLOCK, TOKENS)
        )


class Supply:
    """Pictures without end: a context in which worker processes run.

    A worker takes the number of a free block from one queue, fills the block, and puts the number
    into another, from which `take` reads.

    Args:
        folder: of the shared memory; nothing else uses it, and leaving the context deletes it.
    """

    def __init__(self, source: Source, workers: int, folder: Path) -> None:
        self.source, self.workers, self.folder = source, workers, folder

    def __enter__(self) -> Supply:
        self.folder.mkdir(parents=True, exist_ok=True)
        slots = self.workers * SLOTS
        self.memory = Memory(self.folder, slots, self.source.size, "w+")
        context = multiprocessing.get_context("spawn")
        self.free: Queue[int] = context.Queue()
        self.ready: Queue[int | Failure] = context.Queue()
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

    def take(self, timeout: float = 0.0) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a block: uint8 (BLOCK, size, size, 3) and tokens uint16 (BLOCK, 77); copies.

        None if none is ready within `timeout` seconds. Raises TrainingError if a worker has failed.
        """
        try:
            slot = self.ready.get(timeout > 0, timeout)
        except queue.Empty:
            self.check_workers()
            return None
        if isinstance(slot, Failure):
            raise TrainingError(f"a worker process cannot compose pictures: {slot.reason}")
        pixels, tokens = self.memory.pixels[slot].copy(), self.memory.tokens[slot].copy()
        self.free.put(slot)
        return pixels, tokens

    def check_workers(self) -> None:
        """Raise TrainingError if a worker process has ended."""
        codes = [process.exitcode for process in self.processes if process.exitcode is not None]
        if codes:
            raise TrainingError(
                f"{len(codes)} of {self.workers} worker processes ended (exit codes "
                f"{sorted(set(codes))}); was memory short?"
            )


def take_free(free: Queue[int]) -> int | None:
    """Wait for the number of a free block; None if the trainer has ended."""
    trainer = multiprocessing.parent_process()
    while trainer is None or trainer.is_alive():
        with contextlib.suppress(queue.Empty):
            return free.get(timeout=2.0)
    return None


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Let processes that start in this context compute with one thread: there is one per core."""
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
    ready: Queue[int | Failure],
) -> None:
    """Fill free blocks until the process is ended; the body of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which ends all
    from ldm.text.tokenizer import CLIPTokenizer

    try:
        vocabulary = read_vocabulary(source.archives)
        if source.words is not None and worker == 0:
            write_words(vocabulary, source.words)
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
    except Exception as error:  # whatever it is, the trainer raises it
        ready.put(Failure(f"{type(error).__name__}: {error}"))
