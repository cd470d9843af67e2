"""Pictures: their files, the settings in these, and the images and masks that a user gives."""

from ldm.images.files import (
    check_output,
    digest,
    encode_image,
    image_grid,
    load_image,
    load_layer,
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
    "encode_image",
    "image_grid",
    "load_image",
    "load_layer",
    "read_parameters",
    "read_settings",
    "save_image",
    "stretch",
    "to_pil",
    "to_tensor",
]
