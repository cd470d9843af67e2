"""Pictures that know how they were made."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.images import read_parameters, read_settings, save_image
from ldm.images.names import free_names, picture_name
from ldm.images.picture import Picture

TEXT, SETTINGS = "a red car\nSteps: 3, Seed: 1, Size: 9x7", {"ldm": "1", "arguments": {"seed": 1}}


@pytest.fixture
def plain() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def picture(plain: Image.Image) -> Picture:
    return Picture.of(plain, TEXT, SETTINGS)


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "PNG"])
def test_it_is_saved_as_the_command_saves_it(
    plain: Image.Image, picture: Picture, tmp_path: Path, ending: str
) -> None:
    picture.save(tmp_path / f"ours.{ending}")
    save_image(plain, tmp_path / f"want.{ending}", TEXT, settings=SETTINGS)
    ours, want = (tmp_path / f"{name}.{ending}" for name in ("ours", "want"))
    assert ours.read_bytes() == want.read_bytes()
    assert (read_parameters(ours), read_settings(ours)) == (TEXT, SETTINGS)


def test_other_ways_to_name_a_file(picture: Picture, tmp_path: Path) -> None:
    picture.save(str(tmp_path / "a.png"))
    with (tmp_path / "b.png").open("wb") as file:
        picture.save(file)
    memory = io.BytesIO()
    picture.save(memory, "png")
    picture.save(tmp_path / "c", format="PNG")
    files = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c")]
    assert {*files, memory.getvalue()} == {files[0]}
    picture.save(tmp_path / "d.bmp")  # which has no place for a text
    with pytest.raises(ValueError, match="unknown file extension"):
        picture.save(tmp_path / "e.xyz")


COPIES: list[Callable[[Picture], Image.Image]] = [
    Picture.copy,
    copy.copy,
    copy.deepcopy,
    lambda picture: pickle.loads(pickle.dumps(picture)),
    lambda picture: picture.convert("RGB"),
]


@pytest.mark.parametrize("duplicate", COPIES)
def test_a_copy_keeps_the_settings(
    picture: Picture, duplicate: Callable[[Picture], Image.Image], tmp_path: Path
) -> None:
    other = duplicate(picture)
    assert (np.asarray(other) == np.asarray(picture)).all()
    other.save(tmp_path / "a.png")
    assert read_settings(tmp_path / "a.png") == SETTINGS
    other.putpixel((0, 0), (1, 2, 3))  # of the copy alone
    del other.info["parameters"]
    assert "parameters" in picture.info
    assert picture.getpixel((0, 0)) != (1, 2, 3)
    other.save(tmp_path / "b.png")
    assert read_parameters(tmp_path / "b.png") is None


def test_another_picture_is_a_plain_one(picture: Picture, tmp_path: Path) -> None:
    for other in (picture.resize((3, 3)), picture.crop((0, 0, 2, 2)), picture.rotate(90)):
        assert type(other) is Image.Image
        other.save(tmp_path / "a.png")
        assert read_parameters(tmp_path / "a.png") is None


def test_texts_that_are_given_stand_in_place_of_ours(picture: Picture, tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("mine", "x")
    picture.save(tmp_path / "a.png", pnginfo=info)
    assert Image.open(tmp_path / "a.png").info == {"mine": "x"}
    save_image(picture, tmp_path / "b.png", "other\nSteps: 1, Seed: 2, Size: 9x7")
    assert read_parameters(tmp_path / "b.png") == "other\nSteps: 1, Seed: 2, Size: 9x7"
    picture.save(tmp_path / "c.jpg", quality=10)
    picture.save(tmp_path / "d.jpg")
    assert (tmp_path / "c.jpg").stat().st_size < (tmp_path / "d.jpg").stat().st_size


def test_names() -> None:
    assert picture_name("A red car, 4K!", 7) == "a-red-car-4k-7"
    assert picture_name("../..", None) == "picture"
    assert len(picture_name("ä" * 999, 1).encode()) <= 102
    names = free_names(Path("out/a-1.png"))
    assert [str(next(names)) for _ in range(3)] == ["out/a-1.png", "out/a-1-2.png", "out/a-1-3.png"]
