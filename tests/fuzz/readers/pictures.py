"""Readers of pictures: their pixels as users' options read them, and the texts in their files."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.cli.info import rows_of
from ldm.cli.options import read
from ldm.cli.replay import with_file
from ldm.control.hints import load_rows
from ldm.control.source import read_control
from ldm.errors import ArgumentError, LDMError
from ldm.images.depth import load_depth, read_depth
from ldm.images.files import encode_image, load_image, load_layer
from ldm.images.inputs import pictures_to_tensor
from ldm.images.masks import to_masks
from tests.fuzz.reader import Reader
from tests.images.pictures import EXIF_IFD, USER_COMMENT
from tests.images.test_programs import DREAM, FOOOCUS, graph, invoke

WEB_UI = (
    'a (red:1.2) car\nwith "wheels"\nNegative prompt: blurry, [dark]\n'
    "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 5, Size: 64x48, Model: x, "
    'ControlNet 0: "Module: canny, Model: y [1a2b3c4d], Weight: 0.5, Threshold A: 50, '
    'Guidance Start: 0.1, Guidance End: 1, Control Mode: Balanced", Hires upscale: 2, '
    'Lora hashes: "a: 12", Denoising strength: 0.4, ENSD: 31337, Clip skip: 2, Eta: 0.5'
)
OURS = {
    "ldm": "0.31", "model": "ldm built-in", "batch": [2, 1], "images": {"control_image": "ab"},
    "arguments": {
        "prompt": "a car", "seed": 5, "num_inference_steps": 4, "clip_skip": 2, "width": 64,
        "guidance_interval": "0.1,5", "controlnet_conditioning_scale": "0.5,1", "sampler": "ddim",
    },
    "loading": {"ema": True, "dtype": "float16"}, "controlnets": ["a", "b"],
    "preprocessors": ["canny,low=50", ""], "template": "a {car|bus}", "optimize": False,
}  # fmt: skip
SWARM = {
    "sui_image_params": {
        "prompt": "a", "steps": 30, "loras": "x, y", "loraweights": "0.5,1", "seed": "5",
        "clipstopatlayer": "-2", "initimagecreativity": 0.3, "width": 64,
    }
}  # fmt: skip
NOVEL = {"prompt": "a {cat}", "uc": "dog", "steps": 28, "scale": 5.5, "sampler": "k_euler"}
DRAW_THINGS = {"c": "a cat", "uc": "dog", "steps": 30, "scale": 7, "strength": 0.5, "v2": {}}
EASY = {"prompt": "a", "use_stable_diffusion_model": "sd", "num_inference_steps": 5, "seed": 1}
PLAIN = {"settings": {"prompt": "a cat", "steps": 3, "seed": 1, "size": "64x64"}}
TEXT_TOKENS = (
    *(b"Steps: 5, ", b"Seed: 1, ", b", ", b": ", b'"', b"\\", b"\n", b"Negative prompt: ", b"[["),
    *(b"Size: 9x9", b"Model: ", b"\x1b[2J", b"\xe2\x80\xae", b"9" * 5000, b"ControlNet 0: ", b"{"),
    *(b'["3", 0]', b'"class_type"', b'"inputs"', b"Module: ip-adapter, ", b"Hires upscale: 1e400"),
    *(b"\\ud800", b"\\u0000", b"NaN", b"-1", b"nan", b"Eta: inf, ", b"Sampler: ", b"Lora"),
)
TEXTS: dict[str, tuple[str, list[Any], dict[str, str]]] = {
    "web UI": ("parameters", [WEB_UI], {}),
    "ldm": ("ldm", [OURS], {"parameters": WEB_UI}),
    "Fooocus": ("parameters", [FOOOCUS], {}),
    "SwarmUI": ("parameters", [SWARM], {}),
    "InvokeAI": ("invokeai_metadata", [invoke()], {}),
    "InvokeAI of old": ("Dream", [DREAM], {}),
    "NovelAI": ("Comment", [NOVEL], {"Software": "NovelAI", "Description": "a cat"}),
    "Draw Things": ("UserComment", [DRAW_THINGS], {}),
    "Easy Diffusion": ("UserComment", [EASY], {}),
    "plain JSON": ("parameters", [PLAIN], {}),
    "ComfyUI": ("prompt", [graph()], {"workflow": '{"nodes": []}'}),
}
PICTURE_TOKENS = (
    *(b"IHDR", b"IDAT", b"tEXt", b"zTXt", b"iTXt", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"eXIf"),
    *(b"\xff\xd8", b"\xff\xe1", b"\xff\xda", b"Exif\0\0", b"II*\0", b"MM\0*", b"RIFF", b"WEBP"),
    *(b"VP8X", b"ANIM", b"GIF89a", b"\x7f\xff\xff\xff", b"UNICODE\0", b"UserComment", b"BM"),
)


def describe_and_replay(path: Path) -> object:
    """Do what ``ldm info`` and ``ldm generate --from`` do with a picture.

    A good one may ask for models that are not there.
    """
    rows = rows_of(path, with_hash=False)
    argv = ["--from", str(path)]
    with contextlib.suppress(ArgumentError):
        with_file(read(argv), argv)
    return rows


def with_text(text: str, name: str, others: dict[str, str]) -> io.BytesIO:
    """Return the file of a picture with texts."""
    content = io.BytesIO()
    info = PngInfo()
    options: dict[str, Any] = {"pnginfo": info}
    for key, value in ({name: text} | others).items():
        if key == "UserComment":
            exif = Image.Exif()
            exif[EXIF_IFD] = {USER_COMMENT: b"UNICODE\0" + value.encode("utf-16-be", "replace")}
            options["exif"] = exif
        else:
            info.add_text(key, value.encode("utf-8", "replace").decode())
    Image.new("RGB", (8, 8), "red").save(content, "PNG", **options)
    return content


def text_reader(program: str) -> Reader:
    """Return the reader of what a program writes: the file of a case is its text alone."""
    name, values, others = TEXTS[program]
    seeds = [value if isinstance(value, str) else json.dumps(value) for value in values]

    def read_text(path: Path) -> object:
        text = path.read_bytes().decode("utf-8", errors="replace")
        picture = path.with_name("picture.png")
        picture.write_bytes(with_text(text, name, others).getvalue())
        return describe_and_replay(picture)

    return Reader(
        f"settings of {program}", lambda: [seed.encode() for seed in seeds], read_text,
        "text", TEXT_TOKENS,
    )  # fmt: skip


def picture_files() -> list[bytes]:
    """Return small pictures of all formats and modes."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 255, (9, 12, 4), dtype=np.uint8))
    frames = [colours.convert("RGB").rotate(90 * i) for i in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    exif[EXIF_IFD] = {USER_COMMENT: b"UNICODE\0" + WEB_UI.encode("utf-16-be")}
    deep = Image.fromarray(rng.integers(0, 65535, (9, 12), dtype=np.uint16))
    found = [
        encode_image(colours, "PNG", WEB_UI, OURS),
        encode_image(colours.convert("RGB"), "JPEG", WEB_UI, OURS),
        encode_image(colours, "WEBP", WEB_UI, OURS),
    ]
    others: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colours.convert("RGB").quantize(8), "PNG", {"transparency": 1}),
        (colours.convert("L"), "PNG", {"exif": exif}),
        (colours.convert("1"), "PNG", {}),
        (deep, "PNG", {}),
        (frames[0], "PNG", {"save_all": True, "append_images": frames[1:]}),
        (frames[0], "GIF", {"save_all": True, "append_images": frames[1:], "comment": b"a"}),
        (frames[0], "WEBP", {"save_all": True, "append_images": frames[1:], "lossless": True}),
        (colours.convert("CMYK"), "JPEG", {"exif": exif}),
        (colours.convert("RGB"), "BMP", {}),
        (colours, "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(rng.random((9, 12), dtype=np.float32)), "TIFF", {}),
        (colours.convert("RGB"), "PPM", {}),
        (colours.convert("P"), "PCX", {}),
        (colours, "TGA", {}),
        (colours, "ICO", {}),
        (colours.convert("RGB"), "JPEG2000", {}),
    ]
    for image, file_format, options in others:
        content = io.BytesIO()
        with contextlib.suppress(KeyError, OSError):  # not in every build of Pillow
            image.save(content, file_format, **options)
            found.append(content.getvalue())
    return found


def refused_by_all(actions: Sequence[Callable[[], object]]) -> None:
    """Do all; raise the last error if none of them works."""
    errors: list[LDMError] = []
    for action in actions:
        try:
            action()
        except LDMError as error:
            errors.append(error)
    if len(errors) == len(actions):
        raise errors[-1]


def read_pixels(path: Path) -> object:
    """Read a picture as all that options give a picture for."""
    loaded = load_image(path)
    tensor = pictures_to_tensor([loaded], 16, 16)
    refused_by_all(
        [
            lambda: to_masks([load_layer(path)], [loaded], 16, 16, 2.0),
            lambda: read_depth(path, 1, 1, loaded.size[::-1], 1),
            lambda: load_depth(path),
            lambda: load_rows(path, 1),
            lambda: read_control(f"canny:{path}").loaded().picture((16, 16)),
            lambda: read_control(f"inpaint:{path}").loaded().hint((16, 16)),
        ]
    )
    return tensor


def picture_texts() -> list[bytes]:
    """Return the pictures with texts."""
    return picture_files()[:3]


PICTURES = [
    Reader("picture", picture_files, read_pixels, "a.png", PICTURE_TOKENS, slow=True),
    Reader("texts in a picture", picture_texts, describe_and_replay, "a.png", PICTURE_TOKENS),
    *map(text_reader, TEXTS),
]
