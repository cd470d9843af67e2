"""One mutator for all readers: it damages bytes, JSON, and the members of archives."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

from tests.fuzz.formats import mutate_pickle, mutate_tensors

# What breaks readers more often than random bytes do.
NUMBERS = [0, 1, -1, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
TEXTS = [
    "",
    "\x00",
    "\x1b[2J",
    "é" * 300,
    "a" * 5000,
    "../" * 40,
    "NaN",
    "1e400",
    "9" * 5000,
    "\ud800",
]
VALUES: list[Any] = [
    *(None, True, False, [], {}, [[]], 0, -1, 1.5, -0.0, float("nan"), float("inf"), 2**31, 2**63),
    *(1, 2, 3, 7, 16, 100, 1000, 0.5, [1], [2, 2], [[1], [2]]),
    *(10**30, 10**400, [2**40, 2**40], [-1], ["a"], {"a": {}}, *TEXTS),
]
DEEP = 3000  # brackets, beyond Python's limit of recursion
MOST_BYTES = 1 << 20  # of a mutated file, unless it was larger before


def mutate(
    data: bytes, rng: random.Random, others: Sequence[bytes], tokens: Sequence[bytes]
) -> bytes:
    """Return a damaged copy of a file.

    others: further files, pieces of which are put in; tokens: what is of the format.
    """
    if data[:2] == b"PK" and rng.random() < 0.7:
        inside = mutate_zip(data, rng, others, tokens)
        if inside is not None:
            return inside
    if data[:2] == b"\x1f\x8b" and rng.random() < 0.7:
        return gzip.compress(mutate(gzip.decompress(data), rng, others, tokens), 1)
    if data[:4] == b"\x89PNG" and rng.random() < 0.7:
        return mutate_png(data, rng, others, tokens)
    if data[257:262] == b"ustar" and rng.random() < 0.7:
        return mutate_tar(data, rng, others, tokens)
    if data[:1] in b"{[" and rng.random() < 0.6:
        try:
            return mutate_json(data, rng)
        except (ValueError, RecursionError):
            pass
    if data[8:9] == b"{" and (kind := rng.random()) < 0.8:  # a .safetensors file
        with contextlib.suppress(ValueError, LookupError, TypeError, OverflowError):
            return mutate_tensors(data, rng) if kind < 0.6 else mutate_header(data, rng)
    if data[:1] == b"\x80" and rng.random() < 0.6:  # a pickle
        with contextlib.suppress(ValueError, LookupError):
            return mutate_pickle(data, rng, tokens)
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        change_bytes(result, rng, others, tokens)
    return bytes(result[: max(MOST_BYTES, len(data))])


def change_bytes(
    data: bytearray, rng: random.Random, others: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    """Damage bytes in place, in one way."""
    # Most of what readers understand stands at one of the ends.
    place = rng.randrange(len(data) + 1)
    if rng.random() < 0.5:
        place = min(place, rng.randrange(64))
    end = min(len(data), place + rng.choice([1, 2, 4, 8, 64, 1024]))
    kind = rng.randrange(9)
    if kind == 0 and place < len(data):
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place:end] = rng.randbytes(end - place)
    elif kind == 2:
        del data[place:end]
    elif kind == 3:
        data[place:place] = data[place:end] * rng.choice([1, 2, 50])
    elif kind == 4:
        del data[place:]
    elif kind == 5:
        number, size = rng.choice(NUMBERS), rng.choice([1, 2, 4, 8])
        order = rng.choice(["little", "big"])
        data[place : place + size] = (number % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
    elif kind == 6 and tokens:
        data[place:place] = rng.choice(tokens) * rng.choice([1, 1, 2, 100])
    elif kind == 7 and others:
        other = rng.choice(others)
        start = rng.randrange(len(other) + 1)
        data[place:end] = other[start : start + rng.choice([4, 64, 1024])]
    else:
        data[place:place] = rng.choice(
            [b"[", b"{", b"(", b'"', b"\x00", b"\xff", b"9"]
        ) * rng.choice([1, 8, DEEP])


def mutate_zip(
    data: bytes, rng: random.Random, others: Sequence[bytes], tokens: Sequence[bytes]
) -> bytes | None:
    """Damage a member of a zip, and put it back with a right sum; None for a broken zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = [(info.filename, file.read(info)) for info in file.infolist()]
    except (zipfile.BadZipFile, ValueError, OSError):
        return None
    if not members:
        return None
    small = [i for i, (_, member) in enumerate(members) if len(member) < 65536]
    index = rng.choice(small or range(len(members)))
    name, member = members[index]
    kind = rng.randrange(8)
    if kind == 0:
        del members[index]
    elif kind == 1:
        members.append((name, member))
    elif kind == 2:
        members[index] = (name[: rng.randrange(len(name) + 1)], member)
    else:
        members[index] = (name, mutate(member, rng, others, tokens))
    result = io.BytesIO()
    how = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(result, "w", how) as file:
        for name, member in members:
            file.writestr(zipfile.ZipInfo(name or "x"), member, how)
    return result.getvalue()


def mutate_png(
    data: bytes, rng: random.Random, others: Sequence[bytes], tokens: Sequence[bytes]
) -> bytes:
    """Damage a chunk of a PNG, also within what it compresses, and keep its sum right."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return data[: rng.randrange(len(data) + 1)]
    index = rng.randrange(len(chunks))
    name, inside = chunks[index]
    kind = rng.randrange(6)
    if kind == 0:
        chunks.insert(rng.randrange(len(chunks)), chunks[index])
    elif kind == 1:
        del chunks[index]
    elif kind == 2:
        new = rng.choice([b"tEXt", b"zTXt", b"iTXt", b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"acTL"])
        chunks[index] = (new, inside)
    elif name == b"IDAT" and kind < 5:
        pixels = zlib.decompressobj().decompress(inside, MOST_BYTES)
        chunks[index] = (name, zlib.compress(mutate(pixels, rng, others, tokens)))
    else:
        chunks[index] = (name, mutate(inside, rng, others, tokens))
    result = data[:8]
    for name, inside in chunks:
        result += len(inside).to_bytes(4, "big") + name + inside
        result += zlib.crc32(name + inside).to_bytes(4, "big")
    return result


def mutate_tar(
    data: bytes, rng: random.Random, others: Sequence[bytes], tokens: Sequence[bytes]
) -> bytes:
    """Damage a header of a tar file and put its sum right, or damage the content behind one."""
    heads = [i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"]
    place = rng.choice(heads)
    if rng.random() < 0.4:
        end = next((i for i in heads if i > place), len(data))
        changed = mutate(data[place + 512 : end], rng, (), tokens)[: end - place - 512]
        return data[: place + 512] + changed.ljust(end - place - 512, b"\0") + data[end:]
    head = bytearray(data[place : place + 512])
    first, length = rng.choice([(0, 100), (124, 12), (156, 1), (257, 8), (345, 155)])
    numbers = [f"{rng.choice(NUMBERS):o}".encode(), b"\x80" + rng.randbytes(11), b"\xff" * 12]
    field = rng.choice([*numbers, rng.choice(b"0123456789LKxgXSDV\0").to_bytes(1, "big")])
    field = rng.choice([field, rng.choice(tokens) if tokens else b"", rng.randbytes(length)])
    head[first : first + length] = field[:length].ljust(length, b"\0")
    head[148:156] = b" " * 8
    head[148:155] = f"{sum(head):06o}\0".encode()
    again = bytes(head) * rng.choice([1, 1, 1, 1, 40])
    return data[:place] + again + data[place + rng.choice([0, 512, 512, 512]) :]


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """Damage the JSON of a .safetensors file, and keep its length right."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    try:
        changed = mutate_json(header, rng)
    except (ValueError, RecursionError):
        return data[: rng.randrange(len(data) + 1)]
    return len(changed).to_bytes(8, "little") + changed + data[8 + length :]


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Damage values of a JSON text. Raises ValueError if it is none."""
    lines = data.split(b"\n")
    if len(lines) > 1 and not lines[0].strip().endswith((b"{", b"[", b",")):  # JSON in lines
        index = rng.randrange(len(lines))
        lines[index] = mutate_json(lines[index], rng)
        return b"\n".join(lines)
    value = json.loads(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        value = changed_value(value, rng)
    depth = DEEP if rng.random() < 0.02 else 0
    text = "[" * depth + json.dumps(value) + "]" * depth
    return text.encode("utf-8", "surrogatepass")


def changed_value(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one place changed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        result = dict(value)
        if rng.random() < 0.1:
            result.pop(key)
        elif rng.random() < 0.1:
            result[rng.choice([*TEXTS, *map(str, value)])] = result.pop(key)
        else:
            result[key] = changed_value(value[key], rng)
        return result
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        changed = value.copy()
        changed[index] = changed_value(value[index], rng)
        return changed * rng.choice([1, 1, 1, 1, 2, 30])
    return rng.choice(VALUES)
