"""One unit of A1111's ControlNet extension, as clients send it."""

from __future__ import annotations

from typing import Any

from pydantic import FiniteFloat

from ldm.images.control_text import GUESS, PROMPT
from ldm.server.routes.a1111.bodies import OpenBody

MODE_NUMBERS = ("Balanced", PROMPT, GUESS)
RESIZE = {
    "just resize": 0,
    "crop and resize": 1,
    "resize and fill": 2,
    "inner fit (scale to fit)": 1,
    "scale to fit (inner fit)": 1,
    "outer fit (shrink to fit)": 2,
    "envelope (outer fit)": 2,
}


class Unit(OpenBody):
    """One unit, with the extension's names and defaults; null is the default."""

    enabled: bool = True
    image: Any = None
    input_image: Any = None
    mask: str | None = None
    mask_image: str | None = None
    module: str = "none"
    model: str = "None"
    weight: FiniteFloat = 1.0
    resize_mode: int | str = 1
    processor_res: int = -1
    threshold_a: FiniteFloat = -1
    threshold_b: FiniteFloat = -1
    guidance_start: FiniteFloat = 0.0
    guidance_end: FiniteFloat = 1.0
    control_mode: int | str = 0
    pixel_perfect: bool = False
    guessmode: bool = False
    low_vram: bool = False
    hr_option: str = "Both"
    save_detected_map: bool = True

    @property
    def mode(self) -> str:
        """The control mode in the extension's words."""
        mode = self.control_mode
        if isinstance(mode, int):
            mode = MODE_NUMBERS[mode] if mode in range(3) else str(mode)
        return GUESS if self.guessmode else mode

    @property
    def resizing(self) -> int | None:
        """0: stretch, 1: crop, 2: fill; None for another name."""
        mode = self.resize_mode
        if isinstance(mode, int):
            return mode if mode in range(3) else None
        return RESIZE.get(mode.lower())
