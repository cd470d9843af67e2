"""What a call returns: pictures with seeds and prompts, shown in notebooks, saved together."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import ArgumentError, ImageError
from ldm.images.files import check_output, save_image
from ldm.images.names import free_names, picture_name
from ldm.images.picture import FILE_FORMATS

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SHOWN = 16  # pictures in a notebook
SIDE = 256  # pixels of one there, at most
LETTERS = 200  # of its prompt


@dataclass(repr=False, eq=False)
class Output:
    """The pictures of a call.

    Attributes:
        images: PIL images that know their settings (see ``ldm.images.picture``); or a tensor or an
            array, as ``output_type`` says.
        seeds: the seed that draws each one alone; None of a generator that had drawn before.
        prompts: the prompt of each.
    """

    images: list[Image] | Tensor | Any
    seeds: list[int | None]
    prompts: list[str] = field(default_factory=list)

    def save(self, to: str | Path = "", format: str = "png") -> list[Path]:
        """Save all pictures with their settings; return the paths. Either all are saved or none.

        Args:
            to: a folder, made if it is missing, for files named after the prompt and the seed; a
                name that is taken gets a number. Or the name of one file, such as "car.png".
            format: "png", "jpg" or "webp", of the files in a folder.

        Raises ImageError for a file that exists or cannot be written, ArgumentError for pictures
        that are no PIL images and for an unknown format.
        """
        if not isinstance(self.images, list):
            kind = type(self.images).__name__
            raise ArgumentError(
                f"images is of the type {kind}, which has no file format; draw with "
                "output_type='pil'"
            )
        if not isinstance(to, str | Path):
            raise ArgumentError(f"to is {to!r:.60}; give a folder or the name of a file")
        path = Path(to).expanduser()
        if path.suffix.lower() in FILE_FORMATS and not path.is_dir():
            if len(self.images) > 1:
                raise ArgumentError(
                    f"{path} is one file for {len(self.images)} pictures; give a folder, such as "
                    f"{path.with_suffix('')}/"
                )
            save_image(self.images[0], path)
            return [path]
        if not isinstance(format, str) or f".{format.lower()}" not in FILE_FORMATS:
            raise ArgumentError(f"format is {format!r}; expected 'png', 'jpg' or 'webp'")
        return self._save_in(path, format.lower())

    def _save_in(self, folder: Path, ending: str) -> list[Path]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"the folder {folder} cannot be made ({error.strerror})") from None
        saved: list[Path] = []
        try:
            for prompt, seed, image in self._rows():
                path = folder / f"{picture_name(prompt, seed)}.{ending}"
                saved.append(save_under_free_name(image, path))
        except BaseException:
            for path in saved:
                path.unlink(missing_ok=True)
            raise
        return saved

    def _rows(self) -> list[tuple[str, int | None, Image]]:
        prompts: Sequence[str] = self.prompts or [""] * len(self.images)
        return list(zip(prompts, self.seeds, self.images, strict=True))

    def __repr__(self) -> str:
        seeds = ", ".join(map(str, self.seeds[:4])) + (", …" if len(self.seeds) > 4 else "")
        count = len(self.images)
        if isinstance(self.images, list):
            sizes = {f"{image.width}x{image.height}" for image in self.images}
            shown = f"{count} picture{'s' * (count != 1)}, {', '.join(sorted(sizes))}"
        else:
            shown = f"{type(self.images).__name__} {tuple(self.images.shape)}"
        return f"Output({shown}, seed{'s' * (count != 1)} {seeds})"

    def _repr_html_(self) -> str | None:
        """Show the pictures, small, with seeds and prompts, in a notebook."""
        if not isinstance(self.images, list):
            return None
        cells = [cell(*row) for row in self._rows()[:SHOWN]]
        left = len(self.images) - SHOWN
        more = f"<p>and {left} more in <code>images</code></p>" if left > 0 else ""
        style = "display:flex;flex-wrap:wrap;gap:8px"
        return f'<div style="{style}">{"".join(cells)}</div>{more}'


def save_under_free_name(image: Image, path: Path, **options: Any) -> Path:
    """Save to the first of ``path``'s numbered names that is free; return it.

    options: of ``save_image``.
    """
    for free in free_names(path):
        try:
            check_output(free)
            save_image(image, free, **options)
        except ImageError:
            if free.exists() or free.is_symlink():  # also if another process was quicker
                continue
            raise
        return free
    raise AssertionError("names never end")


def cell(prompt: str, seed: int | None, image: Image) -> str:
    """Return a picture with its seed and prompt as HTML."""
    small = image.convert("RGB")
    small.info.clear()  # the settings need not be in the page
    small.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    small.save(content, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    text = prompt if len(prompt) <= LETTERS else f"{prompt[:LETTERS]}…"
    about = f"seed {seed}" if seed is not None else "no seed"
    words = f"{html.escape(text)}<br><small>{about}</small>"
    return (
        f'<figure style="margin:0;max-width:{SIDE}px"><img src="{url}" width="{small.width}" '
        f'height="{small.height}" alt="{html.escape(text, quote=True)}">'
        f"<figcaption>{words}</figcaption></figure>"
    )
