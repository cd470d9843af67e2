"""Any kind of file becomes RGB; files are written whole or not at all; tensors as in diffusers."""

import errno
import io
import os
import resource
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from ldm.cli import streams
from ldm.errors import ArgumentError, ImageError
from ldm.images import (
    check_output,
    files,
    image_grid,
    load_image,
    read_parameters,
    save_image,
    stretch,
    to_pil,
    to_tensor,
)
from ldm.training.data.reading import open_picture
from tests.helpers.files import names


def noise(width: int = 24, height: int = 16, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def assert_pixels(image: Image.Image, want: object, tolerance: int = 0) -> None:
    assert image.mode == "RGB"
    got, want = np.asarray(image).astype(int), np.asarray(want).astype(int)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance


def grey_rgb(values: object) -> np.ndarray:
    return np.repeat(np.asarray(values)[..., None], 3, axis=-1)


def png(path: Path, rows: np.ndarray, colour_type: int, transparent: bytes = b"") -> Path:
    """A 16-bit PNG, which Pillow can read but not write. colour_type: 0 grey, 2 RGB, 6 RGBA."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        length, check = struct.pack(">I", len(body)), struct.pack(">I", zlib.crc32(kind + body))
        return length + kind + body + check

    height, width = rows.shape[:2]
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )
    return path


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_rgb_files_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(noise(), tmp_path / f"a.{suffix}", **options)
    assert_pixels(load_image(path), noise())
    assert_pixels(load_image(str(path)), noise())


def test_pil_image_is_copied() -> None:
    image = noise()
    loaded = load_image(image)
    loaded.putpixel((0, 0), (1, 2, 3))
    assert_pixels(image, noise())


@pytest.mark.parametrize("in_file", [True, False])
def test_alpha_is_laid_over_white(tmp_path: Path, in_file: bool) -> None:
    image = noise(mode="RGBA")
    rgb, alpha = np.asarray(image)[..., :3] / 255.0, np.asarray(image)[..., 3:] / 255.0
    source = saved(image, tmp_path / "a.png") if in_file else image
    assert_pixels(load_image(source), np.rint(255 * (rgb * alpha + 1 - alpha)), tolerance=1)


def test_grey_alpha_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(10, 255), (10, 0)])
    assert_pixels(load_image(saved(image, tmp_path / "a.png")), [[[10] * 3, [255] * 3]])


def test_premultiplied_alpha() -> None:
    assert_pixels(load_image(Image.new("RGBa", (1, 1), (0, 0, 0, 0))), [[[255] * 3]])


@pytest.mark.parametrize("suffix", ["png", "gif"])
@pytest.mark.parametrize("transparent", [True, False])
def test_palette(tmp_path: Path, suffix: str, transparent: bool) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    options = {"transparency": 1} if transparent else {}
    path = saved(image, tmp_path / f"a.{suffix}", **options)
    middle = (255, 255, 255) if transparent else (0, 255, 0)
    assert_pixels(load_image(path), [[(255, 0, 0), middle, (0, 0, 255)]])


def test_palette_with_partial_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putdata([0, 1])
    path = saved(image, tmp_path / "a.png", transparency=bytes([128, 255]))
    assert_pixels(load_image(path), [[(127, 127, 127), (255, 0, 0)]], tolerance=1)


def test_rgb_with_one_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))
    path = saved(image, tmp_path / "a.png", transparency=(1, 2, 3))
    assert_pixels(load_image(path), [[(9, 8, 7), (255, 255, 255)]])


DEEP = np.array([[0, 1, 128, 129, 255, 256], [257, 1000, 32768, 40000, 65407, 65535]], np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "pgm":  # older Pillows read it and do not write it
        path.write_bytes(b"P5 6 2 65535\n" + DEEP.astype(">u2").tobytes())
    else:
        Image.fromarray(DEEP).save(path)
    assert_pixels(load_image(path), grey_rgb(np.rint(DEEP / 257)))


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", DEEP, colour_type=0, transparent=struct.pack(">H", 1000))
    want = np.where(DEEP == 1000, 255, np.rint(DEEP / 257))
    assert_pixels(load_image(path), grey_rgb(want))


def test_16_bit_colour(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 65536, (5, 4, 3), np.uint16)
    path = png(tmp_path / "a.png", rows, colour_type=2)
    assert_pixels(load_image(path), rows / 257, tolerance=1)
    opaque = np.concatenate([rows, np.full((5, 4, 1), 65535, np.uint16)], axis=-1)
    assert_pixels(load_image(png(tmp_path / "b.png", opaque, 6)), rows / 257, tolerance=1)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bit_modes_in_memory(mode: str) -> None:
    order = ">" if mode.endswith("B") else "<"
    image = Image.frombytes(mode, (6, 2), DEEP.astype(f"{order}u2").tobytes())
    assert_pixels(load_image(image), grey_rgb(np.rint(DEEP / 257)))


def test_float_grey(tmp_path: Path) -> None:
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    path = saved(Image.fromarray(values), tmp_path / "a.tiff")
    assert_pixels(load_image(path), grey_rgb(np.rint(values * 255)))


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 65536]], np.int32),
        np.array([[-1, 5]], np.int32),
        np.array([[0, 1.5]], np.float32),
        np.array([[0, np.nan]], np.float32),
    ],
)
def test_grey_values_of_unknown_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    path = saved(Image.fromarray(values), tmp_path / "a.tiff")
    with pytest.raises(ImageError, match=r"cannot read .*a.tiff: .* outside \[0, (1.0|65535)\]"):
        load_image(path)


def test_1_bit_and_grey(tmp_path: Path) -> None:
    bits = Image.fromarray(np.array([[True, False, True]]))
    assert bits.mode == "1"
    assert_pixels(load_image(saved(bits, tmp_path / "a.png")), grey_rgb([[255, 0, 255]]))
    grey = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    assert_pixels(load_image(saved(grey, tmp_path / "b.png")), grey_rgb([[0, 100, 255]]))


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    assert_pixels(load_image(image), np.full((16, 16, 3), (255, 0, 0)))
    path = saved(image, tmp_path / "a.jpg", quality=95)
    assert_pixels(load_image(path), np.full((16, 16, 3), (255, 0, 0)), tolerance=3)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_spaces(mode: str) -> None:
    assert_pixels(load_image(noise().convert(mode)), noise(), tolerance=9)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    """A picture of four coloured quarters must stand upright whatever way it is stored."""
    upright = Image.new("RGB", (48, 32), "red")
    upright.paste("lime", (24, 0, 48, 16))
    upright.paste("blue", (0, 16, 24, 32))
    upright.paste("white", (24, 16, 48, 32))
    turn = Image.Transpose
    stored_as = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,  # the viewer turns it by 270 degrees counterclockwise
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = upright.transpose(stored_as[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    path = saved(stored, tmp_path / f"a.{suffix}", exif=exif, **options.get(suffix, {}))
    assert_pixels(load_image(path), upright, tolerance=4)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert_pixels(load_image(path), frames[0])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    path = saved(noise(64, 64), tmp_path / f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageError, match=f"a.{suffix}") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_damaged_files_raise_nothing_else(tmp_path: Path) -> None:
    """Whatever is wrong in a file, the error is an ImageError."""
    rng = np.random.default_rng(0)
    refused = 0
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ico"):
        path = saved(noise(16, 16), tmp_path / f"a.{suffix}")
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = content.copy()
            damaged[rng.integers(0, min(len(content), 200), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(damaged.tobytes())
            try:
                assert load_image(path).mode == "RGB"
            except ImageError:
                refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<svg/>", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"GIF89a", bytes(5000)]
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a"])
def test_file_that_is_not_an_image(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a(\.png|\.jpg)? is not an image|cannot read"):
        load_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no\.png does not exist"):
        load_image(tmp_path / "no.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match=r"is no name that a file can have"):
        load_image("a\0b.png")


@pytest.mark.parametrize("side", [9_500, 20_000])  # past Pillow's warning, and past its error
def test_huge_image_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    idat = struct.pack(">I", 10) + b"IDAT" + bytes(14)
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + crc + idat)
    with warnings.catch_warnings(), pytest.raises(ImageError, match="more than 89 megapixels"):
        warnings.simplefilter("error")
        load_image(path)


@pytest.mark.parametrize("source", [None, 3, [noise()], np.zeros((2, 2, 3))])
def test_source_of_another_type(source: object) -> None:
    with pytest.raises(ArgumentError, match="must be a path or a PIL image"):
        load_image(source)


# --- writing ---------------------------------------------------------------------------------

TEXT = "a réd car 🚗,\n(two lines)\nNegative prompt: ugly\nSteps: 20, Seed: 1, Size: 8x8"


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg", "a.webp"])
@pytest.mark.parametrize("text", [TEXT, "plain latin text é", "", None])
def test_saved_image_and_parameters_read_back(tmp_path: Path, name: str, text: str | None) -> None:
    smooth = stretch(noise(3, 2), 32, 48)
    save_image(smooth, tmp_path / name, parameters=text)
    assert read_parameters(tmp_path / name) == text
    assert_pixels(load_image(tmp_path / name), smooth, 0 if "png" in name.lower() else 25)
    assert names(tmp_path) == [name]


def test_png_chunk_is_the_one_other_tools_read(tmp_path: Path) -> None:
    save_image(noise(), tmp_path / "a.png", parameters="Steps: 1")
    assert b"tEXtparameters\0Steps: 1" in (tmp_path / "a.png").read_bytes()
    save_image(noise(), tmp_path / "b.png", parameters="ツ")
    assert b"iTXtparameters\0" in (tmp_path / "b.png").read_bytes()
    save_image(noise(), tmp_path / "c.jpg", parameters="Steps: 1")
    assert b"UNICODE\0" + "Steps: 1".encode("utf-16-be") in (tmp_path / "c.jpg").read_bytes()


def test_parameters_after_the_pixels_are_read(tmp_path: Path) -> None:
    path = saved(noise(), tmp_path / "a.png")
    body = b"tEXtparameters\0late"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk + content[-12:])
    assert read_parameters(path) == "late"


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "é car".encode("utf-16"),
        b"ASCII\0\0\0\xc3\xa9 car",
        bytes(8) + b"\xc3\xa9 car",
    ],
)
def test_user_comments_of_other_programs(tmp_path: Path, comment: bytes) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: comment}
    assert read_parameters(saved(noise(), tmp_path / "a.jpg", exif=exif)) == "é car"


def test_existing_file_is_kept_unless_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(noise(seed=1), path)
    before = path.read_bytes()
    with pytest.raises(ImageError, match=r"a\.png already exists"):
        save_image(noise(seed=2), path)
    assert path.read_bytes() == before
    save_image(noise(seed=2), path, overwrite=True)
    assert_pixels(load_image(path), noise(seed=2))
    assert names(tmp_path) == ["a.png"]


def test_file_that_appears_during_the_write_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    monkeypatch.setattr(files, "check_output", lambda *_: path.write_text("mine"))
    with pytest.raises(ImageError, match="already exists"):
        save_image(noise(), path)
    assert path.read_text() == "mine"
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_many_writers_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", fail(errno.EPERM))
    monkeypatch.setattr(files, "check_output", lambda *_: None)
    won, refused, barrier = [], [], threading.Barrier(8)

    def write(seed: int) -> None:
        barrier.wait()
        try:
            save_image(noise(seed=seed), tmp_path / "a.png")
            won.append(seed)
        except ImageError:
            refused.append(seed)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    assert_pixels(load_image(tmp_path / "a.png"), noise(seed=won[0]))
    assert names(tmp_path) == ["a.png"]


def fail(code: int) -> object:
    def raise_it(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return raise_it


@pytest.mark.parametrize(
    ("function", "overwrite"),
    [("fsync", False), ("fsync", True), ("link", False), ("replace", True)],
)
def test_disk_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, overwrite: bool
) -> None:
    path = tmp_path / "a.png"
    if overwrite:
        path.write_text("old")
    monkeypatch.setattr(os, function, fail(errno.ENOSPC))
    if function == "link":  # the way without links fails too
        monkeypatch.setattr(os, "replace", fail(errno.ENOSPC))
    with pytest.raises(ImageError, match=r"cannot write .*a.png: No space left on device$"):
        save_image(noise(), path, overwrite=overwrite)
    assert names(tmp_path) == (["a.png"] if overwrite else [])
    if overwrite:
        assert path.read_text() == "old"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_write_that_fails_halfway(tmp_path: Path, suffix: str) -> None:
    """A real one: the process may not write files of more than 2000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(ImageError, match=r"cannot write .*: "):
            save_image(noise(128, 128), tmp_path / f"a.{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []


@pytest.mark.parametrize("moment", ["save", "fsync", "link"])
def test_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image if moment == "save" else os, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_image(noise(), tmp_path / "a.png")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a", "does not end in a known format; use .png, .jpg or .webp"),
        ("a.gif", "does not end in a known format"),
        (".png", "does not end in a known format"),
        ("no/such/a.png", "no/such is not a folder; create it"),
        ("file/a.png", "file is not a folder"),
        ("folder", "is a folder; give a file in it"),
        ("folder.png", "is a folder"),
        ("file.png", "already exists"),
        ("link.png", "already exists"),
    ],
)
def test_path_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    for file in ("file", "file.png"):
        (tmp_path / file).write_text("mine")
    for folder in ("folder", "folder.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link.png").symlink_to("nowhere")
    before = names(tmp_path)
    for function in (check_output, lambda path: save_image(noise(), path)):
        with pytest.raises(ImageError, match=message):
            function(tmp_path / name)
    assert names(tmp_path) == before
    assert (tmp_path / "file.png").read_text() == "mine"


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root
    with pytest.raises(ImageError, match=r"is read-only; choose another folder for a\.png"):
        save_image(noise(), tmp_path / "a.png")


def test_writable_path_passes_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_output("a.png")
    save_image(noise(), "a.png")
    check_output("a.png", overwrite=True)


@pytest.mark.parametrize(
    ("mode", "name", "text"),
    [
        ("RGBA", "a.jpg", None),
        ("CMYK", "a.png", None),
        ("RGB", "a.png", "half \ud800"),
        ("RGB", "a.jpg", "x" * 70_000),
    ],
)
def test_what_a_format_cannot_hold(tmp_path: Path, mode: str, name: str, text: str | None) -> None:
    with pytest.raises(ImageError, match=r"cannot write .*a\."):
        save_image(Image.new(mode, (4, 4)), tmp_path / name, parameters=text)
    assert names(tmp_path) == []


def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_image(noise(), tmp_path / "a.png")
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


# --- tensors ---------------------------------------------------------------------------------


@pytest.mark.parity
def test_to_tensor_equals_diffusers() -> None:
    pictures = [noise(24, 16, seed=seed) for seed in range(3)]
    want = VaeImageProcessor(vae_scale_factor=1).preprocess(pictures)
    got = to_tensor(pictures)
    assert got.shape == (3, 3, 16, 24) and got.dtype == torch.float32 and got.is_contiguous()
    assert torch.equal(got, want)
    assert torch.equal(to_tensor(pictures[0]), want[:1])
    assert to_tensor([Image.new("RGB", (1, 1), (0, 0, 255))]).flatten().tolist() == [-1, -1, 1]


@pytest.mark.parity
def test_to_pil_equals_diffusers() -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(2, 3, 64, 48, generator=generator)
    halves = torch.arange(0, 256).add(0.5).div(255).mul(2).sub(1)  # at the edges of rounding
    edges = halves.repeat(3 * 64 * 48 // 256).reshape(1, 3, 64, 48)
    tensor = torch.cat([tensor, edges, tensor[:1] * 1e30])
    want = VaeImageProcessor().postprocess(tensor, output_type="pil")
    got = to_pil(tensor)
    assert len(got) == 4
    for ours, theirs in zip(got, want, strict=True):
        assert_pixels(ours, theirs)


def test_tensor_round_trip_is_exact() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert_pixels(to_pil(to_tensor(Image.fromarray(pixels)))[0], pixels)


def test_to_pil_of_half_precision_rounds_in_float32() -> None:
    tensor = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert_pixels(to_pil(tensor)[0], to_pil(tensor.float())[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_picture_that_is_not_finite(value: float) -> None:
    tensor = torch.zeros(2, 3, 4, 4)
    tensor[1, 2, 3, 3] = value
    with pytest.raises(ImageError, match="picture 1 has values that are NaN or infinite"):
        to_pil(tensor)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 4, 4, 4), (1, 4, 4, 3)])
def test_to_pil_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"must be \(B, 3, H, W\)"):
        to_pil(torch.zeros(shape))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "empty"),
        ([noise(), noise(mode="L")], r"images\[1\] is L; it must be RGB"),
        ([noise(), noise(16, 24)], r"images\[1\] is 16x24 and images\[0\] 24x16"),
    ],
)
def test_to_tensor_of_unlike_images(pictures: list[Image.Image], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        to_tensor(pictures)


@pytest.mark.parity
@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 40), (16, 24), (1, 1)])
def test_resize_equals_diffusers(height: int, width: int) -> None:
    want = VaeImageProcessor().resize(noise(), height, width)
    got = stretch(noise(), height, width)
    assert got.size == (width, height)
    assert_pixels(got, want)


@pytest.mark.parametrize(("height", "width"), [(0, 8), (8, -1)])
def test_resize_to_nothing(height: int, width: int) -> None:
    with pytest.raises(ArgumentError, match="must be at least 1"):
        stretch(noise(), height, width)


# --- grids -----------------------------------------------------------------------------------

COLOURS = ["red", "lime", "blue", "black", "gray"]


@pytest.mark.parametrize(
    ("count", "columns", "cells"),
    [
        (1, None, "0"),
        (2, None, "01"),
        (3, None, "01/2 "),
        (4, None, "01/23"),
        (5, None, "012/34 "),
        (5, 1, "0/1/2/3/4"),
        (5, 2, "01/23/4 "),
        (3, 9, "012"),
    ],
)
def test_grid(count: int, columns: int | None, cells: str) -> None:
    grid = image_grid([Image.new("RGB", (7, 5), colour) for colour in COLOURS[:count]], columns)
    rows = cells.split("/")
    assert grid.size == (7 * len(rows[0]), 5 * len(rows))
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            colour = "white" if cell == " " else COLOURS[int(cell)]
            box = (x * 7, y * 5, x * 7 + 7, y * 5 + 5)
            assert_pixels(grid.crop(box), Image.new("RGB", (7, 5), colour))


def test_grid_of_unequal_sizes() -> None:
    grid = image_grid([Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 6), "blue")])
    assert grid.size == (8, 6)
    assert grid.getpixel((4, 5)) == (0, 0, 255)
    assert grid.getpixel((0, 5)) == (255, 255, 255)


def test_grid_arguments() -> None:
    with pytest.raises(ArgumentError, match="images is empty"):
        image_grid([])
    with pytest.raises(ArgumentError, match="columns is 0"):
        image_grid([noise()], columns=0)


def test_files_are_handled_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from PIL import Image; from ldm.images import *; "
        "save_image(Image.new('RGB', (8, 8)), 'a.png', 'Steps: 1'); load_image('a.png'); "
        "read_parameters('a.png'); image_grid([stretch(load_image('a.png'), 4, 4)]); "
        "print('torch' in sys.modules)"
    )
    root = str(Path(files.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_pillow_stream_is_read_lazily_and_errors_are_ours() -> None:
    """A PIL image that was opened but not decoded yet fails inside load_image."""
    stream = io.BytesIO()
    noise(64, 64).save(stream, "PNG")
    image = Image.open(io.BytesIO(stream.getvalue()[:2000]))
    with pytest.raises(ImageError, match="cannot read image: "):
        load_image(image)


@pytest.mark.parametrize("way", ["file", "stdin", "data set"])
def test_pictures_start_no_other_program(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow gives PostScript, under whatever name, to Ghostscript, which runs it."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    monkeypatch.setattr(streams, "read_stdin", lambda _: content)
    streams._picture.cache_clear()
    ways: dict[str, Callable[[], object]] = {
        "file": lambda: load_image(path),
        "stdin": lambda: streams.picture_source("-"),
        "data set": lambda: open_picture(path, "picture.png").load(),
    }
    with pytest.raises((ImageError, UnidentifiedImageError), match=r"picture|identify|EPS"):
        ways[way]()
    assert not started
