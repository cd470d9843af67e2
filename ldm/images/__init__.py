"""Pictures: files, what they say of how they were made, and what a user gives to start from."""

from ldm.images.files import (
    check_output,
    digest,
    image_grid,
    load_image,
    read_parameters,
    read_settings,
    save_image,
    stretch,
    to_pil,
    to_tensor,
)

__all__ = [
    "check_output",
    "digest",
    "image_grid",
    "load_image",
    "read_parameters",
    "read_settings",
    "save_image",
    "stretch",
    "to_pil",
    "to_tensor",
]
