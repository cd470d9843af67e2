"""The grammar NAME[,KEY=VALUE]…:FILE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.control.preprocessed import ControlSource
from ldm.control.preprocessors import PREPROCESSORS, canny, inpaint
from ldm.control.source import SIMILAR, SPELLINGS, read_control
from ldm.errors import ArgumentError, ImageError
from tests.control.pictures import noise


@pytest.mark.parametrize(
    ("text", "name", "path", "parameters"),
    [
        ("canny:picture.png", "canny", "picture.png", {}),
        ("grey:a b,c=1:d.png", "grey", "a b,c=1:d.png", {}),
        (r"canny:C:\x.png", "canny", r"C:\x.png", {}),
        ("canny,low=50, high = 1.2e2:C:/x.png", "canny", "C:/x.png", {"low": 50, "high": 120}),
        ("tile,factor=8:/a/b.png", "tile", "/a/b.png", {"factor": 8}),
    ],
)
def test_grammar(text: str, name: str, path: str, parameters: dict[str, float]) -> None:
    assert read_control(text) == ControlSource(name, Path(path), parameters)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (r"C:\x.png", r"names no preprocessor; write NAME:FILE, such as canny:C:\x.png"),
        ("C:/x.png", "names no preprocessor"),
        ("C:x.png", "names no preprocessor"),
        ("picture.png", "such as canny:picture.png"),
        ("./a:b.png", "such as canny:./a:b.png"),
        (":x.png", "such as canny:x.png"),
        ("", "such as canny:FILE"),
        ("canny", "'canny' names no file; write canny:FILE"),
        ("canny,low=5", "write canny,low=5:FILE"),
        ("canny:", "names no file"),
        ("cany:a.png", "unknown preprocessor 'cany'; did you mean 'canny'?"),
        ("Canny:a.png", "did you mean 'canny'?"),
        ("gray:a.png", "did you mean 'grey'?"),
        ("soft-edge:a.png", "did you mean 'softedge'?"),
        ("bird:a.png", "expected one of canny, softedge, scribble, lineart, tile, grey, inpaint"),
        ("depth_midas:a.png", "only a network can make it; give the map as the control image"),
        ("hed:a.png", "or use softedge"),
        ("https://x/y.png", "'https://x/y.png' is an address"),
        ("canny:https://x/y.png", "'https://x/y.png' is an address"),
        ("canny,low=-5:x", "canny: low is -5.0; expected a number in [0, 2040]"),
        ("canny,low=nan:x", "canny: low is nan; expected"),
        ("canny,low=much:x", "canny: low is 'much'; expected a number in [0, 2040]"),
        ("canny,lo=3:x", "canny has no parameter 'lo'; did you mean 'low'?"),
        ("tile,x=3:x", "tile has no parameter 'x'; it takes factor"),
        ("inpaint,mask=m.png:x", "inpaint has no parameter 'mask'; it takes no parameters"),
        ("canny,low=1,low=2:x", "canny: low is given twice"),
        ("canny,low:x", "canny: 'low' is no parameter; write KEY=VALUE"),
        ("canny,:x", "canny: '' is no parameter"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_control(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250


def test_names_in_advice_exist() -> None:
    assert {*SIMILAR.values(), *SPELLINGS.values()} <= set(PREPROCESSORS)


def test_picture(tmp_path: Path) -> None:
    file = tmp_path / "a:b.png"
    noise().save(file)
    drawn = read_control(f"canny,low=10,high=20:{file}").picture()
    assert np.array_equal(np.asarray(drawn), np.asarray(canny(noise(), low=10, high=20)))
    with pytest.raises(ImageError, match=r"missing\.png does not exist"):
        read_control("canny:missing.png").picture()


def test_transparency_reaches_the_preprocessor(tmp_path: Path) -> None:
    erased = noise().convert("RGBA")
    erased.paste((0, 0, 0, 0), (0, 0, 9, 9))
    erased.save(tmp_path / "erased.png")
    drawn = read_control(f"inpaint:{tmp_path / 'erased.png'}").picture()
    want = inpaint(noise(), Image.fromarray(np.asarray(erased)[..., 3] < 128))
    assert np.array_equal(np.asarray(drawn), np.asarray(want))
