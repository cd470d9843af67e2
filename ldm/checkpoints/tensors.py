"""Named tensors in files: safetensors first, PyTorch pickles only with ``weights_only=True``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.deferred import FLOAT8, Deferred, Stored, computable, dense
from ldm.checkpoints.formats import GGUF, IP_ADAPTER, SAFETENSORS, find_format
from ldm.checkpoints.header import Header, read_header
from ldm.checkpoints.number_formats import check_range, float_format
from ldm.checkpoints.pickle_content import tensors_of
from ldm.checkpoints.pickles import read_pickle
from ldm.checkpoints.plain import check_finite, check_mapping, check_real, refuse_name
from ldm.checkpoints.scaled_fp8 import apply_scales, is_scale
from ldm.errors import CheckpointError, NotEnoughMemoryError
from ldm.memory.shortage import is_shortage, message
from ldm.writing import as_os_error, whole_file

# The names of vectors in files of one word, which they do not name: for SDXL's two text encoders,
# for any (A1111's "emb", OneTrainer's "emp"), and with "_out" for the states of an encoder.
ONE_WORD = {
    f"{name}{end}"
    for name in ("clip_l", "clip_g", "emb_params", "emp_params")
    for end in ("", "_out")
}
MAX_WORDS = 256  # of a file of several
WINDOW = 1 << 26  # bytes that are mapped as one


class Checkpoint(NamedTuple):
    """What a weight file holds."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]  # of a .safetensors or GGUF file
    global_step: int | None = None  # of a training checkpoint


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of ``read_checkpoint``, all computed."""
    return {key: dense(value) for key, value in read_checkpoint(path).tensors.items()}


def read_checkpoint(path: Path) -> Checkpoint:
    """Map a ``.safetensors`` file, or a pickle of PyTorch's, into memory; or open a GGUF file.

    A tensor is read when it is first used: scaled float8 and GGUF's blocks are ``Deferred``. A
    training checkpoint's weights are its ``state_dict``.
    Raises CheckpointError for a file that is truncated, not of its kind, or would run code.
    """
    return checkpoint_of(path, *read_content(path))


def checkpoint_of(path: Path, content: object, metadata: dict[str, str]) -> Checkpoint:
    """Return the tensors among a file's content, as ``read_checkpoint`` does."""
    step = content.get("global_step") if isinstance(content, Mapping) else None
    content = tensors_of(content)
    if isinstance(content, Mapping) and set(content) >= set(IP_ADAPTER):
        raise CheckpointError(f"{path} is an IP-Adapter; give it as --ip-adapter FILE")
    found: dict[str, Stored] = check_mapping(path, content, Tensor, Deferred)
    tensors = apply_scales(found, path) if any(map(is_scale, found)) else found
    return Checkpoint(tensors, metadata, step if isinstance(step, int) else None)


def all_tensors(content: object, prefix: str = "") -> Iterator[tuple[str, Stored]]:
    """Yield the tensors in mappings and lists, with their names joined by dots."""
    entries: Iterable[tuple[object, object]] = ()
    if isinstance(content, Mapping):
        entries = content.items()
    elif isinstance(content, list):
        entries = enumerate(content)
    for name, value in entries:
        if isinstance(value, Tensor | Deferred):
            yield f"{prefix}{name}", value
        elif not prefix:  # deeper ones are no weights: see ``pickles.DEPTH``
            yield from all_tensors(value, f"{name}.")


def read_embedding(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read a textual inversion's vectors (n, D) by their names, and its word if the file has it.

    The forms of A1111's .pt and .safetensors, diffusers', OneTrainer's and SDXL's are known; see
    ``ldm.adapters.textual_inversion`` for what the names say.
    Raises CheckpointError for anything else.
    """
    content, _ = read_content(path)
    word = None
    if isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping):
        word, content = content.get("name"), content["string_to_param"]
    elif isinstance(content, Mapping) and len(content) == 1:
        (word,) = content
        word = None if word in ONE_WORD else word
    entries = content if isinstance(content, Mapping) and len(content) <= MAX_WORDS else {}
    vectors = {str(name): as_vectors(path, str(name), value) for name, value in entries.items()}
    found = {name: value for name, value in vectors.items() if value is not None}
    unfit = len(found) < len(vectors) or any(map(refuse_name, found))
    if unfit or not is_embedding(found):
        raise CheckpointError(
            f"{path} is no textual inversion: expected the vectors of a word, or of at most "
            f"{MAX_WORDS} words of one width"
        )
    if refuse_name(word) or not word:
        word = None
    return found, word if len(found) == 1 else None


def as_vectors(path: Path, name: str, value: object) -> Tensor | None:
    """Return a tensor of one or several vectors as (n, D); None for anything else.

    Raises CheckpointError for vectors that are not finite real numbers.
    """
    if not isinstance(value, Tensor | Deferred) or value.ndim not in (1, 2) or 0 in value.shape:
        return None
    check_real(path, name, value)
    vectors = computable(dense(value))
    check_finite(path, name, vectors.float())
    return vectors.reshape(-1, vectors.shape[-1])


def is_embedding(vectors: Mapping[str, Tensor]) -> bool:
    """Whether named vectors are those of words, and not of a network's layers."""
    if ONE_WORD.issuperset(vectors):
        return bool(vectors)
    widths = {value.shape[1] for value in vectors.values()}
    layers = any(name.endswith((".weight", ".bias")) for name in vectors)
    return len(widths) == 1 and len(vectors) <= MAX_WORDS and not layers and all(vectors)


def read_content(path: Path) -> tuple[object, dict[str, str]]:
    """Read a file and its metadata, which pickles lack; errors are those of ``read_checkpoint``."""
    try:
        kind = find_format(path)
        if kind == GGUF:
            from ldm.checkpoints.gguf_blocks import defer_tensors
            from ldm.checkpoints.gguf_header import read_gguf_header

            gguf = read_gguf_header(path)
            return defer_tensors(path, gguf), gguf.metadata
        if kind == SAFETENSORS:
            header = read_header(path)
            return map_tensors(path, header), header.metadata
        return read_pickle(path), {}
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except (
        SafetensorError,
        MemoryError,
        ValueError,
        RuntimeError,
    ) as error:  # it changed meanwhile
        if is_shortage(error):
            raise NotEnoughMemoryError(f"{path}: {message(error)}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or not a weight file ({reason}); get it again"
        ) from None


def map_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """Map the tensors of a .safetensors file in windows.

    A window's memory is freed with the last tensor in it: a caller that takes the tensors out one
    by one and converts them holds the file only once.
    """
    windows: list[list[str]] = [[]]
    filled = 0
    for name, info in header.tensors.items():
        if filled + info.size > WINDOW and windows[-1]:
            windows.append([])
            filled = 0
        windows[-1].append(name)
        filled += info.size
    tensors: dict[str, Tensor] = {}
    for names in windows:
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors


def to_save(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Copy a network's tensors to the CPU in ``dtype``, of which float8 is not for all of them.

    None keeps each one's. See ``ldm.checkpoints.number_formats``.
    Raises CheckpointError for values that are not finite, as large ones are in float16.
    """
    saved = {}
    for key, value in tensors.items():
        to = float_format(key, value, dtype)
        kind = str(to).removeprefix("torch.")
        if to in FLOAT8:  # PyTorch would write the largest number in the place of larger ones
            check_range(key, value, kind, torch.finfo(to).max)
        saved[key] = value.to("cpu", to)
        if to not in FLOAT8:
            check_range(key, saved[key], kind)
    return saved


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all. Raises OSError, such as for a full disk."""
    # transformers looks for the format before it accepts a file.
    metadata = {"format": "pt", **(metadata or {})}
    with whole_file(path) as new:
        new.touch()
        mode = new.stat().st_mode  # by the user's umask; the library uses its own
        try:
            save_file({key: value.contiguous() for key, value in tensors.items()}, new, metadata)
        except SafetensorError as error:
            raise as_os_error(error, path) from None
        new.chmod(mode)
