"""The pictures in the documentation are what the built-in model draws."""

import numpy as np
import pytest
from PIL import Image

from ldm.images import save_image
from tools import readme_pictures


@pytest.mark.slow
def test_the_committed_pictures_are_drawn_again(tmp_path):
    """Within rounding, which differs from processor to processor, and what WebP loses."""
    for name, picture in readme_pictures.draw(None).items():
        save_image(picture, tmp_path / name)
        with Image.open(tmp_path / name) as drawn, Image.open(readme_pictures.FOLDER / name) as old:
            assert drawn.size == old.size, f"{name}: run make pictures"
            ours, theirs = (np.asarray(image.convert("RGB"), float) for image in (drawn, old))
        assert abs(ours - theirs).mean() < 1, f"{name} is another picture: run make pictures"
