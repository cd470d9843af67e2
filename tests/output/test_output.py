"""What a call returns: saved whole or not at all, shown in a notebook."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm import Output, output, read_info
from ldm.errors import ArgumentError, ImageError
from ldm.images.picture import Picture
from tests.helpers.files import names

TEXT = "a <b>car</b>\nSteps: 1, Seed: 1, Size: 9x7"


def made(count: int = 2, size: tuple[int, int] = (9, 7)) -> Output:
    images = [
        Picture.of(Image.new("RGB", size, (i, 0, 0)), TEXT, {"ldm": "1"}) for i in range(count)
    ]
    return Output([*images], [*range(count)], ["a <b>car</b>"] * count)


def test_save_in_a_folder(tmp_path: Path) -> None:
    paths = made().save(tmp_path / "new" / "out")
    assert [path.name for path in paths] == ["a-b-car-b-0.png", "a-b-car-b-1.png"]
    assert made().save(f"{tmp_path}/new/out/")[1].name == "a-b-car-b-1-2.png"
    assert made(1).save(tmp_path / "new/out", format="JPG")[0].name == "a-b-car-b-0.jpg"
    assert Image.open(paths[0]).info["parameters"] == TEXT
    assert len(names(tmp_path / "new/out")) == 5
    nameless = Output([Image.new("RGB", (2, 2))], [None])
    assert nameless.save(tmp_path)[0].name == "picture.png"


def test_save_one_file(tmp_path: Path) -> None:
    assert made(1).save(tmp_path / "car.webp") == [tmp_path / "car.webp"]
    with pytest.raises(ImageError, match=r"car\.webp already exists"):
        made(1).save(tmp_path / "car.webp")
    with pytest.raises(ArgumentError, match=r"car\.png is one file for 2 pictures; give a folder"):
        made().save(tmp_path / "car.png")
    assert names(tmp_path) == ["car.webp"]


def test_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a-b-car-b-0.png").write_text("mine")
    real, calls = output.save_image, []

    def fails(image: Image.Image, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise ImageError("the disk is full")
        real(image, path)

    monkeypatch.setattr(output, "save_image", fails)
    with pytest.raises(ImageError, match="the disk is full"):
        made(3).save(tmp_path)
    assert names(tmp_path) == ["a-b-car-b-0.png"]
    assert (tmp_path / "a-b-car-b-0.png").read_text() == "mine"


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    tensor = Output(torch.zeros(1, 3, 8, 8), [1])
    for bad, message in (
        (lambda: tensor.save(tmp_path), "images is of the type Tensor, .* output_type='pil'"),
        (lambda: made().save(tmp_path, format="tiff"), "format is 'tiff'; expected 'png'"),
        (lambda: made().save(tmp_path, format=3), "format is 3"),
        (lambda: made().save(3), "to is 3; give a folder"),
    ):
        with pytest.raises(ArgumentError, match=message):
            bad()
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match=r"the folder .*file cannot be made"):
        made().save(tmp_path / "file")
    assert names(tmp_path) == ["file"]


def test_repr() -> None:
    assert repr(made()) == "Output(2 pictures, 9x7, seeds 0, 1)"
    assert repr(made(9)) == "Output(9 pictures, 9x7, seeds 0, 1, 2, 3, …)"
    assert repr(Output(torch.zeros(1, 4, 2, 2), [None])) == "Output(Tensor (1, 4, 2, 2), seed None)"


def test_html() -> None:
    shown = made(20, (900, 300))._repr_html_()
    assert shown is not None
    assert shown.count("<img ") == 16 and "and 4 more" in shown
    assert "<b>" not in shown and "a &lt;b&gt;car&lt;/b&gt;" in shown and "seed 15" in shown
    assert 'width="256" height="85"' in shown
    (url, *_) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    assert len(url) < 10_000
    long = Output([Image.new("RGB", (2, 2))], [1], ['"x' * 999])._repr_html_()
    assert long is not None and len(long) < 5000 and 'alt="&quot;x' in long
    assert Output(torch.zeros(1, 3, 8, 8), [1])._repr_html_() is None


def test_read_info_of_a_picture() -> None:
    assert read_info(made().images[0]).arguments == {}
    with pytest.raises(ImageError, match="the picture: it does not say how it was made"):
        read_info(Image.new("RGB", (2, 2)))
    with pytest.raises(ArgumentError, match="3 is no picture"):
        read_info(3)  # type: ignore[arg-type]
