"""The worst files of a given size: those that a careless reader takes the square of it for."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping

Make = Callable[[int], bytes]
ZERO = b"K\x00"


def safetensors(
    names: Iterable[str], shape: tuple[int, ...] = (0,), metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return a file of empty tensors; names: as many as wanted, the same one only once."""
    entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]}
    header = ({"__metadata__": metadata} if metadata else {}) | dict.fromkeys(names, entry)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def numbered(form: str, shape: tuple[int, ...] = (0,)) -> Make:
    """Return a maker of files whose tensors have numbers in their names."""
    each = len(form) + 60

    def make(size: int) -> bytes:
        return safetensors((form.replace("#", str(i)) for i in range(size // each)), shape)

    return make


def long_names(piece: str, end: str = "") -> Make:
    """Return a maker of files with one name that is a piece again and again."""
    return lambda size: safetensors([piece * (size // len(piece)) + end])


def in_metadata(key: str, piece: str) -> Make:
    return lambda size: safetensors(["a"], metadata={key: piece * (size // len(piece))})


def patterns(size: int) -> bytes:
    """A LoRA for many layers, with settings for many others."""
    layers = [f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_{i}" for i in "qkv"]
    text = json.dumps({"alpha_pattern": {f"x{i}": 1 for i in range(size // 12)}, "lora_alpha": 1})
    names = [f"{layer}.lora_{end}.weight" for layer in layers for end in "AB"]
    return safetensors(names, (0, 0), {"lora_adapter_metadata": text})


def archive(data: bytes, members: int = 1) -> bytes:
    """Return a zip file of a pickle, with some values."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as file:
        file.writestr("x/data.pkl", data)
        for i in range(members):
            file.writestr(f"x/data/{i}", bytes(8))
    return result.getvalue()


def opcodes(piece: bytes, before: bytes = b"\x80\x02}", end: bytes = b".") -> Make:
    """Return a maker of pickles that repeat a piece."""
    return lambda size: archive(before + piece * (size // len(piece)) + end)


def global_names(size: int) -> bytes:
    each = (b"cnumpy\nx%d\n0" % i for i in range(size // 14))
    return archive(b"\x80\x02}" + b"".join(each) + b".")


def colliding_keys(size: int) -> bytes:
    """Numbers whose hash is 0, as keys of one dictionary."""
    modulus = 2**61 - 1
    keys = (b"\x8a\x0c" + (i * modulus).to_bytes(12, "little") + b"N" for i in range(size // 15))
    return archive(b"\x80\x02}(" + b"".join(keys) + b"u.")


def shared(size: int) -> bytes:
    """Many tensors of one storage, and as many names of one of them."""
    storage = (
        b"ctorch._utils\n_rebuild_tensor_v2\nq\x00((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQq\x01K\x00K\x02\x85K\x01\x85\x89}tq\x02R0"
    )
    each = (b"X\x08\x00\x00\x00%08dh\x00h\x02R" % i for i in range(size // 18))
    return archive(b"\x80\x02" + storage + b"}(" + b"".join(each) + b"u.")


def deep_number(place: bytes) -> Make:
    """Return a maker of tensors in which a number is a tuple of 2**60 values."""
    deep = b"K\x01" + b"2\x86" * 60

    def make(size: int) -> bytes:
        count, shape = (deep, b"K\x02\x85") if place == b"count" else (b"K\x02", deep)
        return archive(
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
            b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count
            + b"tQK\x00" + shape + b"K\x01\x85\x89}tR" + b"N0" * (size // 2) + b"."
        )  # fmt: skip

    return make


def gguf(size: int) -> bytes:
    """A header with an array of empty words."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    count = size // 8
    return head + struct.pack("<IIQ", 9, 8, count) + bytes(8 * count)


def gguf_arrays(size: int) -> bytes:
    """A header with an array of empty arrays."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    count = size // 12
    return head + struct.pack("<IIQ", 9, 9, count) + struct.pack("<IQ", 9, 0) * count


def gguf_tensors(size: int) -> bytes:
    count = size // 40
    each = (struct.pack("<Q8sIQIQ", 8, b"%08d" % i, 1, 0, 0, 0) for i in range(count))
    return b"GGUF" + struct.pack("<IQQ", 3, count, 0) + b"".join(each)


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.#"
MODEL = "model.diffusion_model.input_blocks.#.1.transformer_blocks.0.attn2.to_k.weight"
WORST: dict[str, Make] = {
    "names of NumPy": global_names,
    "colliding keys": colliding_keys,
    "one storage": shared,
    "a deep count": deep_number(b"count"),
    "a deep shape": deep_number(b"shape"),
    "opcodes": opcodes(b"N0"),
    "lists": opcodes(b"]", b"\x80\x02"),
    "tuples in tuples": opcodes(b"\x85", b"\x80\x02K\x00"),
    "marks": opcodes(b"(", b"\x80\x02"),
    "dictionaries by calls": opcodes(
        b"h\x00h\x01\x85R0",
        b"\x80\x02ccollections\nOrderedDict\nq\x00]q\x01("
        + b"X\x01\x00\x00\x00aN\x86" * 500
        + b"e0",
    ),
    "many members": lambda size: archive(b"\x80\x02}.", size // 120),
    "lines": opcodes(b"V" + b"a" * 80 + b"\n0"),
    "long numbers": opcodes(b"L" + b"9" * 4000 + b"L\n0"),
    "a long shape": lambda size: safetensors(["a"], (2**62,) * (size // 20)),
    "many tensors": numbered("a.#.weight"),
    "a long name": long_names("a"),
    "text encoders": long_names("transformer.text_model.", ".self_attn.in_proj.weigh"),
    "old attentions": long_names("attentions.0.query."),
    "markers of scales": numbered("a#.scaled_fp8"),
    "many scales": numbered("a#.scale_weight"),
    "transformer blocks": numbered(f"{BLOCK}.attn1.to_q.weight", (0, 0)),
    "U-Net blocks": numbered(MODEL, (0, 8)),
    "LoRA layers": numbered("lora_unet_x_#.lora_down.weight", (0, 8)),
    "LoRA of other models": numbered("transformer.blocks.#.attn.lora_A.weight", (0, 8)),
    "unsupported adapters": numbered("unet.x#.vera_lambda_b", (0, 8)),
    "words": numbered("bundle_emb.w#.clip_l", (0, 8)),
    "first LoRAs": numbered("unet:#:up", (8, 0)),
    "IP-Adapter": numbered("ip_adapter.#.to_k_ip.weight", (8, 8, 0)),
    "T2I-Adapter": numbered("adapter.body.#.block1.weight", (8, 8, 3, 0)),
    "T2I blocks": numbered("adapter.body.0.resnets.#.block1.weight", (8, 8, 3, 0)),
    "LLLite": numbered("lllite_unet_down_blocks_#.conditioning1.0.weight"),
    "TAESD": numbered("decoder.#.conv.0.weight"),
    "ControlNet": numbered("control_model.input_hint_block.#.weight"),
    "ControlNet-Union": numbered("transformer_layes.#.task_embedding"),
    "image encoder": numbered("vision_model.encoder.layers.#.x"),
    "settings of LoRAs": patterns,
    "tags": in_metadata("ss_tag_frequency", "[["),
    "spaces": in_metadata("modelspec.title", " \n"),
    "predictions": in_metadata("modelspec.architecture", "-v-pred"),
    "settings in metadata": in_metadata("ot_config", '{"a":'),
    "GGUF: words": gguf,
    "GGUF: arrays": gguf_arrays,
    "GGUF: tensors": gguf_tensors,
}
