"""Kinds of networks that read pictures beside the text: what they and their arguments are called.

Functions that work for every kind take one of these, and name it in their errors.
"""

from __future__ import annotations

from typing import NamedTuple


class PictureReader(NamedTuple):
    """A kind of network that reads pictures.

    Attributes:
        name: as users write it.
        option: of the command, as Python writes it ("controlnet"); ``flag`` is the option itself.
        image, scale: arguments of a request: the pictures, and the factor of what a network adds.
        image_flag, scale_flag: their short options.
        load: the method of ``Pipeline`` that loads one.
        least: the least value of a picture that is given as a tensor.
    """

    name: str
    option: str
    image: str
    image_flag: str
    scale: str
    scale_flag: str
    load: str
    least: float = 0.0

    @property
    def flag(self) -> str:
        """The command's option."""
        return f"--{self.option.replace('_', '-')}"

    @property
    def unload(self) -> str:
        """The method of ``Pipeline`` that removes one."""
        return f"un{self.load}"

    def counted(self, number: int) -> str:
        """Write a number of them: "2 ControlNets"."""
        return f"{number} {self.name}{'s' * (number != 1)}"


CONTROLNET = PictureReader(
    "ControlNet",
    "controlnet",
    "control_image",
    "--control-image",
    "controlnet_conditioning_scale",
    "--control-scale",
    "load_controlnet",
    -1.0,  # marks what an inpainting ControlNet fills in
)
T2I_ADAPTER = PictureReader(
    "T2I-Adapter",
    "t2i_adapter",
    "adapter_image",
    "--adapter-image",
    "adapter_conditioning_scale",
    "--adapter-scale",
    "load_t2i_adapter",
)
