"""Damage that keeps the form of a file of weights, so that it reaches what reads the tensors."""

from __future__ import annotations

import json
import math
import pickletools
import random
import struct
from collections.abc import Sequence

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I64": 64, "I32": 32,
    "U8": 8, "BOOL": 8, "C64": 64, "F8_E8M0": 8,
}  # fmt: skip
MOST = 1 << 16  # values of a tensor whose shape was changed
STRANGE_NAMES = [
    "", ".", "..", "weight", ".weight", "a" * 5000, "x\n\x1b[2J", "\u202eabc", "é.weight", "0",
    "string_to_param", "state_dict", "clip_l", "emb_params", "lora_controlnet", "scaled_fp8",
    "conv_in.weight", "encoder.x", "decoder.1.weight", "1.weight", "v_pred", "edm_mean", "*",
]  # fmt: skip
STRANGE_ENDS = [
    ".alpha", ".lora_up.weight", ".lora_down.weight", ".dora_scale", ".oft_blocks", ".diff",
    ".hada_w1_a", ".lokr_w1", ".scale_weight", ".comfy_quant", ".diff_b", ".on_input", ".weight",
    ".bias", ".0", ".99999", ".boft_R", ".w_norm", ".up", ".down",
]  # fmt: skip
Entry = tuple[str, list[int]]  # dtype and shape


def mutate_tensors(data: bytes, rng: random.Random) -> bytes:
    """Change names, shapes, dtypes and values of a .safetensors file; the header stays true.

    Raises ValueError or LookupError for a file that is none.
    """
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    metadata = entries.pop("__metadata__", None)
    body = data[8 + length :]
    tensors: dict[str, Entry] = {k: (v["dtype"], list(v["shape"])) for k, v in entries.items()}
    values = {k: body[slice(*v["data_offsets"])] for k, v in entries.items()}
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        change_tensor(tensors, rng)
    header, blocks, end = {}, [], 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BITS.get(dtype, 8) // 8
        block = values.get(name, b"")
        if len(block) != size:
            block = rng.choice([b"\x00", b"\x3c", b"\xff", b"\x7f"]) * size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        blocks.append(block)
        end += size
    if metadata is not None:
        header = {"__metadata__": metadata} | header
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + b"".join(blocks)


def change_tensor(tensors: dict[str, Entry], rng: random.Random) -> None:
    """Change one tensor of a header."""
    name = rng.choice(list(tensors)) if tensors else "x"
    dtype, shape = tensors.pop(name, ("F32", [1]))
    kind = rng.randrange(8)
    if kind == 0:
        return
    if kind == 1:
        name = rng.choice([*STRANGE_NAMES, name.swapcase(), name[: rng.randrange(len(name) + 1)]])
    elif kind == 2:
        stem = name.rpartition(".")[0]
        name = rng.choice([name, stem]) + rng.choice(STRANGE_ENDS)
    elif kind == 3:
        dtype = rng.choice(list(BITS))
    elif kind == 4:
        place = rng.randrange(len(name) + 1)
        name = name[:place] + rng.choice("0123456789._") + name[place + 1 :]
    else:
        shape = changed_shape(shape, rng)
    tensors[name] = (dtype, shape)


def changed_shape(shape: list[int], rng: random.Random) -> list[int]:
    """Return another shape of at most ``MOST`` values, or of none."""
    kind = rng.randrange(8)
    result = list(shape)
    if kind == 0:
        result = []
    elif kind == 1:
        result = [math.prod(shape)]
    elif kind == 2:
        result = shape[::-1]
    elif kind == 3:
        result = [1] * rng.choice([1, 5, 64, 65]) + shape
    elif kind == 4:
        result = shape[: rng.randrange(len(shape) + 1)]
    elif shape:
        place = rng.randrange(len(shape))
        result[place] = rng.choice([0, 1, 2, 3, result[place] * 2, result[place] + 1, 7, 2**40])
    return result if math.prod(result) <= MOST else [0, *result]


def mutate_pickle(data: bytes, rng: random.Random, tokens: Sequence[bytes]) -> bytes:
    """Change whole opcodes of a pickle: leave out, repeat, swap, other numbers, other opcodes.

    Raises ValueError for what is no pickle.
    """
    places = [place or 0 for _, _, place in pickletools.genops(data)]
    end = data.index(b".", places[-1]) + 1
    ops = [data[a:b] for a, b in zip(places, [*places[1:], end], strict=True)]
    for _ in range(rng.choice([1, 1, 2, 4, 12])):
        change_opcode(ops, rng, tokens)
    return b"".join(ops) + data[end:]


def change_opcode(ops: list[bytes], rng: random.Random, tokens: Sequence[bytes]) -> None:
    """Change one opcode in place."""
    i, j = rng.randrange(len(ops)), rng.randrange(len(ops))
    kind = rng.randrange(7)
    if kind == 0 and len(ops) > 1:
        del ops[i]
    elif kind == 1:
        ops[i:i] = ops[i : i + rng.choice([1, 1, 4, 16])] * rng.choice([1, 1, 3, 100])
    elif kind == 2:
        ops[i], ops[j] = ops[j], ops[i]
    elif kind == 3:
        ops[i] = ops[j]
    elif kind == 4 and tokens:
        ops[i:i] = [rng.choice(tokens)]
    elif kind == 5:
        numbers = [i for i, op in enumerate(ops) if op[:1] in (b"K", b"M", b"J", b"\x8a")]
        number = rng.choice([0, 1, -1, 2, 7, 255, 2**31 - 1, 2**40, 2**62, -(2**62)])
        raw = number.to_bytes(9, "little", signed=True)
        ops[rng.choice(numbers or [i])] = b"\x8a\x09" + raw
    else:
        ops[i] = rng.choice([b"N", b"]", b"}", b")", b"\x88", b"(", b"0", b"2", b"G" + struct.pack(
            ">d", rng.choice([math.nan, math.inf, 1e300]))])  # fmt: skip
