"""Pictures: files ⇄ PIL images ⇄ tensors (B, 3, H, W) in [-1, 1].

Tensors and sizes are handled as by diffusers' VaeImageProcessor: bit-identical in float32.
"""

import contextlib
import hashlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ldm.config.files import open_regular
from ldm.errors import ArgumentError, ImageError
from ldm.images.picture import ANIMATIONS, FILE_FORMATS, QUALITY
from ldm.images.text_fields import embed, parameters_of, settings_of, text_fields
from ldm.writing import whole_file

if TYPE_CHECKING:  # reading and writing files must not wait for torch
    import torch

# Of one picture to draw; more is a slip of the finger.
MAX_SIDE, MAX_PIXELS = 8192, 4096 * 4096
MAX_GRID_PIXELS = 1 << 28  # of all pictures of a grid: 800 MB
PROGRAMS = ("EPS",)  # formats that Pillow starts another program for, which runs what they say


def load_image(source: str | Path | Image.Image) -> Image.Image:
    """Load a file or PIL image of any kind as a new RGB image, 8 bits per channel.

    The image is turned as its EXIF data says; transparent parts become white; 16-bit and float grey
    is scaled, not clipped; of an animation, the first frame is taken.

    Raises ImageError if the file is missing, damaged, not an image, or larger than Pillow's limit
    (`PIL.Image.MAX_IMAGE_PIXELS`, 89 megapixels).
    """
    return load(source, _to_rgb)


def load_layer(source: str | Path | Image.Image) -> Image.Image:
    """Load as ``load_image``, but keep transparency: RGB if all is opaque, else RGBA."""
    return load(source, _to_layer)


def read_texts(path: str | Path | Image.Image) -> dict[str, str]:
    """Read all texts in a picture file by the names of their fields (see text_fields.py).

    Of a PIL image, those that it was opened or drawn with. Raises ImageError as `load_image` does.
    """
    if isinstance(path, Image.Image):
        return text_fields(path)
    if not isinstance(path, str | Path):
        raise ArgumentError(f"{path!r:.60} is no picture; give a path or a PIL image")
    with _reading(path), open_picture(path) as image:
        image.load()  # PNG text may come after the pixels
        return text_fields(image)


def read_parameters(path: str | Path) -> str | None:
    """Read the text that stands where the web UI writes its own (see metadata.py), or None.

    Raises ImageError as `load_image` does.
    """
    return parameters_of(read_texts(path))


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """Read our exact settings in a picture file (see text_fields.py); None if it has none.

    Raises ImageError as `load_image` does, and for settings that are broken.
    """
    texts = read_texts(path)
    with _reading(path):
        return settings_of(texts)


def digest(image: Image.Image) -> str:
    """Return ten letters that distinguish RGB pictures, however they are stored."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()[:10]


def check_output(path: str | Path, overwrite: bool = False, animated: bool = False) -> None:
    """Raise the ImageError that `save_image` would raise for this path: call it before a run."""
    formats = ANIMATIONS if animated else FILE_FORMATS
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path} is a folder; give a file in it, such as {path / 'picture.png'}")
    if path.suffix.lower() not in formats:
        raise ImageError(f"{path} does not end in a known format; use .png, .jpg or .webp")
    if not path.parent.is_dir():
        raise ImageError(f"{path.parent} is not a folder; create it, or choose another for {path}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ImageError(f"{path.parent} is read-only; choose another folder for {path.name}")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)


def save_image(
    image: Image.Image,
    path: str | Path,
    parameters: str | None = None,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Write a .png, .jpg or .webp file, whole or not at all.

    With `parameters`, the file also holds those and the `settings` (see text_fields.py). `options`
    are those of Pillow's encoder. With its option `save_all`, an animation, .gif works, too.

    Raises ImageError if it cannot be written, or if `path` exists and `overwrite` is False: two
    processes that write the same path at the same time never take it from each other.
    """
    path = Path(path)
    check_output(path, overwrite, bool(options.get("save_all")))
    file_format = ANIMATIONS[path.suffix.lower()]
    try:
        # Into memory first: straight to a file, Pillow takes a write cut short by a full disk for
        # a whole one.
        content = encode_image(image, file_format, parameters, settings, **options)
        with whole_file(path, overwrite) as new, new.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise _exists(path) from error
    except Exception as error:  # Pillow's encoders raise errors of many types
        raise ImageError(f"cannot write {path}: {_reason(error)}") from error


def encode_image(
    image: Image.Image,
    file_format: str = "PNG",
    parameters: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> bytes:
    """Return the content of the file that ``save_image`` writes, in one of Pillow's formats."""
    options = QUALITY.get(file_format, {}) | options
    if parameters is not None:
        options |= embed(parameters, file_format, settings)
    content = io.BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()


def holds(
    path: str | Path, image: Image.Image, parameters: str, settings: Mapping[str, Any]
) -> bool:
    """Whether a file has the pixels that ``save_image`` would write there; False if it is damaged.

    Raises nothing for a file that is missing or no picture.
    """
    file_format = FILE_FORMATS[Path(path).suffix.lower()]
    written = io.BytesIO(encode_image(image, file_format, parameters, settings))
    try:
        kept = load_image(path)
    except ImageError:
        return False
    with Image.open(written) as own:
        return digest(kept) == digest(_to_rgb(own))


def to_tensor(images: Image.Image | Sequence[Image.Image]) -> "torch.Tensor":
    """Stack RGB images of one size: float32 (B, 3, H, W) in [-1, 1]."""
    import torch

    images = [images] if isinstance(images, Image.Image) else list(images)
    for index, image in enumerate(images):
        if image.mode != "RGB":
            raise ArgumentError(f"images[{index}] is {image.mode}; it must be RGB: see load_image")
        if image.size != images[0].size:
            raise ArgumentError(
                f"images[{index}] is {image.width}x{image.height} and images[0] "
                f"{images[0].width}x{images[0].height}; they must be of one size: see stretch"
            )
    if not images:
        raise ArgumentError("images is empty; give at least one")
    pixels = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255.0
    return torch.from_numpy(2.0 * pixels - 1.0).permute(0, 3, 1, 2).contiguous()


def to_pil(images: "torch.Tensor") -> list[Image.Image]:
    """Convert (B, 3, H, W) in [-1, 1], of any float type and device, to RGB images; clamp the rest.

    (B, 1, H, W) makes grey images, of mode "L". Raises ImageError if a value is not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ArgumentError(
            f"images has shape {tuple(images.shape)}; it must be (B, 3, H, W), or (B, 1, H, W)"
        )
    images = images.detach().float()
    for index, image in enumerate(images):
        if not image.isfinite().all():
            raise ImageError(f"picture {index} has values that are NaN or infinite; use float32")
    pixels = ((images * 0.5 + 0.5).clamp(0, 1) * 255).round().byte()
    arrays = (pixels[:, 0] if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1)).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def stretch(image: Image.Image, height: int, width: int) -> Image.Image:
    """Stretch to exactly height x width pixels (Lanczos)."""
    if height < 1 or width < 1:
        raise ArgumentError(f"the size is {width}x{height}; width and height must be at least 1")
    return image.resize((width, height), Image.Resampling.LANCZOS)


def image_grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Lay images side by side, row by row, on white; `columns` None makes the grid about square.

    The cells are of the largest width and height among the images.
    """
    if not images:
        raise ArgumentError("images is empty; give at least one")
    if columns is None:
        columns = math.ceil(math.sqrt(len(images)))
    if columns < 1:
        raise ArgumentError(f"columns is {columns}; it must be at least 1")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    width, height = max(i.width for i in images), max(i.height for i in images)
    if columns * width * rows * height > MAX_GRID_PIXELS:
        raise ArgumentError(
            f"a grid of {columns}x{rows} pictures of {width}x{height} has more than "
            f"{MAX_GRID_PIXELS >> 20} megapixels; lay out fewer, or smaller ones"
        )
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for index, image in enumerate(images):
        grid.paste(image, (index % columns * width, index // columns * height))
    return grid


def load(
    source: str | Path | Image.Image, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Load a file or PIL image, and ``convert`` it. Raises ImageError as ``load_image``."""
    if isinstance(source, Image.Image):
        with _reading("image"):
            return convert(source)
    if not isinstance(source, str | Path):
        raise ArgumentError(
            f"image is of the type {type(source).__name__}; it must be a path or a PIL image"
        )
    with _reading(source), open_picture(source) as image:
        return convert(image)


@contextlib.contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """Open a regular file as a picture."""
    with (
        open_regular(path, ImageError, wanted="an image file") as file,
        open_content(file) as image,
    ):
        yield image


def open_content(file: BinaryIO) -> Image.Image:
    """Open a picture, of any format but those that Pillow starts another program for, as EPS.

    Raises UnidentifiedImageError, and what else Pillow raises.
    """
    image = Image.open(file)  # it is read later
    if image.format in PROGRAMS:
        raise UnidentifiedImageError(image.format)
    return image


@contextlib.contextmanager
def _reading(name: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong while an image is read into an ImageError of one line."""
    name = f"{name!s:.500}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd files that it does read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist; check the path") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image; give a PNG, JPEG or WebP file") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ImageError(f"{name} has more than {limit} megapixels; scale it down") from error
    except Exception as error:  # Pillow's decoders raise errors of many types on damaged files
        raise ImageError(f"cannot read {name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the system's own words if it has some, without the number and the temporary name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _to_layer(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_layer(image: Image.Image) -> Image.Image:
    if not image.width or not image.height:
        raise ValueError("it has no pixels")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.mode == "La":  # Pillow has only this way out of it
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return layer.convert("RGB") if np.asarray(layer.getchannel("A")).min() == 255 else layer
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey (Pillow may hold it in mode "I") or float grey in [0, 1] to 8 bits.

    The mode is "L", and "LA" if one value is transparent.
    """
    values, top = np.asarray(image), 1.0 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= top):  # so written, NaN is refused too
        raise ValueError(
            f"it has grey values from {values.min()} to {values.max()}, outside [0, {top}]; "
            "save it with 8 or 16 bits per channel"
        )
    grey = Image.fromarray(np.rint(values * np.float32(255 / top)).astype(np.uint8))
    if "transparency" in image.info:
        opaque = values != image.info["transparency"]
        grey.putalpha(Image.fromarray(np.where(opaque, np.uint8(255), np.uint8(0))))
    return grey


def _exists(path: Path) -> ImageError:
    return ImageError(f"{path} already exists; choose another name, or allow it to be overwritten")
