"""A picture to preprocess at the size that is drawn, given as ``control_image``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image
from PIL.Image import new as new_image

from ldm.images.files import load_image, load_layer, stretch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ControlSource:
    """A preprocessor's name, the file or picture that it works on, and its parameters.

    ``ldm.control.source.read_control`` reads one from "canny,low=50:car.png".
    """

    name: str
    path: Path | Image
    parameters: dict[str, int | float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The preprocessor as it is written, without its defaults: "canny,low=50"."""
        defaults = signature(self._function()).parameters
        changed = [
            f"{name}={value:g}"
            for name, value in sorted(self.parameters.items())
            if value != defaults[name].default
        ]
        return ",".join([self.name, *changed])

    def loaded(self) -> ControlSource:
        """Return it with its picture in memory. Transparency is kept: preprocessors read it.

        Raises ImageError for a file that cannot be read, ArgumentError for parameters that do not
        go together, and for a picture that shows "inpaint" nothing to draw.
        """
        layer = load_layer(self.path)
        probe = layer if self.name == "inpaint" else new_image("RGB", (8, 8))
        self._function()(probe, **self.parameters)
        return replace(self, path=layer)

    @property
    def original(self) -> Image:
        """The picture before it is preprocessed: RGB. Raises ImageError as ``loaded``."""
        return load_image(self.path)

    def picture(self, size: tuple[int, int] | None = None) -> Image:
        """Preprocess the picture at (height, width), or at its own size: RGB.

        Raises ImageError for a file that cannot be read, ArgumentError as the preprocessor.
        """
        return self._function()(self._layer(size), **self.parameters)

    def hint(self, size: tuple[int, int]) -> Image | Tensor:
        """Return what a ControlNet reads: ``picture``, or (1, 3, H, W) with −1 where it is masked.

        The latter is for "inpaint", as a picture has no −1.
        """
        if self.name != "inpaint":
            return self.picture(size)
        from ldm.control.preprocessors import make_inpaint_condition

        return make_inpaint_condition(self._layer(size))

    def _function(self) -> Callable[..., Image]:
        # Only here: most runs preprocess nothing.
        from ldm.control.preprocessors import PREPROCESSORS

        return PREPROCESSORS[self.name]

    def _layer(self, size: tuple[int, int] | None) -> Image:
        layer = load_layer(self.path)
        return layer if size is None or size == layer.size[::-1] else stretch(layer, *size)
