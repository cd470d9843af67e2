"""Canny against OpenCV and scikit-image, and its parts against SciPy."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ldm.control.preprocessors import canny
from ldm.control.preprocessors.components import connected_components
from ldm.control.preprocessors.filters import dilate, gaussian_blur, sobel
from ldm.errors import ArgumentError
from tests.control.pictures import everything, noise

EIGHT = np.ones((3, 3))
THRESHOLDS = [(100, 200), (50, 100), (0, 0), (10.7, 300.2), (1500, 2040)]


def edges(image: Image.Image, **parameters: float) -> np.ndarray:
    return np.asarray(canny(image, **parameters))[..., 0] > 0


@pytest.mark.parametrize(("low", "high"), THRESHOLDS)
def test_equals_opencv(low: float, high: float) -> None:
    """All pixels of eight pictures."""
    cv2 = pytest.importorskip("cv2")
    for name, image in everything().items():
        want = cv2.Canny(np.asarray(image), low, high) > 0
        assert np.array_equal(edges(image, low=low, high=high), want), name


def test_equals_what_opencv_drew() -> None:
    """As test_equals_opencv, where OpenCV is not installed."""
    drawn = np.packbits(edges(noise(97, 64), low=300, high=600))
    assert hashlib.sha256(drawn.tobytes()).hexdigest()[:16] == "68a50ad333f59beb"


def test_smoothed_equals_opencv() -> None:
    """99.9 % of the pixels, since float32 sums differ in the last bit before they are rounded."""
    cv2 = pytest.importorskip("cv2")
    for name, image in everything().items():
        smooth = cv2.GaussianBlur(np.asarray(image, np.float32), (0, 0), 1.4)
        want = cv2.Canny(np.rint(smooth).astype(np.uint8), 50, 100) > 0
        same = (edges(image, low=50, high=100, sigma=1.4) == want).mean()
        assert same >= 0.999, (name, same)


def test_agrees_with_scikit_image() -> None:
    """96.6, 97.7, 98.4 and 99.8 % of the pixels; F1 within a pixel 0.96, 0.96, 1 and 1.

    scikit-image thresholds √(dx² + dy²), which is π/4 of |dx| + |dy| on average, and interpolates
    between pixels across an edge.
    """
    feature = pytest.importorskip("skimage.feature")
    for name in ("china", "flower", "house", "drawing"):
        grey = everything()[name].convert("L")
        ours = edges(grey, low=40, high=80, sigma=1.4)
        thresholds = {"low_threshold": 40 * np.pi / 4, "high_threshold": 80 * np.pi / 4}
        theirs = feature.canny(np.asarray(grey, float), 1.4, **thresholds, mode="mirror")
        same = (ours == theirs).mean()
        precision = (ours & ndimage.binary_dilation(theirs, EIGHT)).sum() / ours.sum()
        recall = (theirs & ndimage.binary_dilation(ours, EIGHT)).sum() / theirs.sum()
        f1 = 2 * precision * recall / (precision + recall)
        assert same >= 0.96, (name, same)
        assert f1 >= 0.94, (name, f1)


def test_low_above_high_is_refused() -> None:
    with pytest.raises(ArgumentError, match="low is 300 and high 200"):
        canny(noise(), low=300)


def test_nothing_found_is_noted() -> None:
    flat = canny(Image.new("RGB", (8, 8), "red"))
    assert "lower its thresholds" in flat.info["note"]
    assert "note" not in canny(noise()).info


def test_light_strokes_on_a_transparent_layer_are_seen() -> None:
    layer = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    layer.paste((255, 255, 255, 255), (8, 8, 24, 24))
    assert edges(layer).sum() > 50


def test_blur_is_a_gaussian() -> None:
    x = np.random.default_rng(0).random((40, 50, 3))
    want = ndimage.gaussian_filter(x, (2.5, 2.5, 0), mode="mirror", truncate=4)
    assert np.abs(gaussian_blur(x, 2.5) - want).max() < 1e-6


def test_sobel() -> None:
    x = np.asarray(noise().convert("L"))
    dx, dy = sobel(x)
    for ours, axis in ((dx, 1), (dy, 0)):
        want = ndimage.sobel(x.astype(np.int16), axis, mode="nearest")
        assert np.array_equal(ours, want)


@pytest.mark.parametrize("radius", [0, 1, 2.5, 5, 200])
def test_dilation_is_by_a_disc(radius: float) -> None:
    mask = np.random.default_rng(0).random((60, 50)) < 0.01
    far = ndimage.distance_transform_edt(~mask)
    assert np.array_equal(dilate(mask, radius), far <= radius)


@pytest.mark.parametrize("share", [0, 0.1, 0.4, 0.6, 1])
def test_components(share: float) -> None:
    mask = np.random.default_rng(0).random((90, 70)) < share
    where, ours = connected_components(mask)
    theirs, count = ndimage.label(mask, EIGHT)
    pairs = set(zip(ours.tolist(), theirs.ravel()[where].tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == count


def test_a_long_line_is_one_component() -> None:
    """A snake of 32,000 pixels: a search from pixel to pixel would take as many rounds."""
    mask = np.zeros((257, 257), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    _, component = connected_components(mask)
    assert not component.any()
