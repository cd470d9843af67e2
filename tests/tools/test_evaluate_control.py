"""The measure of how well pictures follow drawings, and the command that takes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.checkpoints.folder import save_component
from ldm.control.controlnet import ControlNet
from ldm.pipeline import Pipeline
from tools.builtin_model.evaluate_control import edge_agreement, main


def square(left: int, side: int = 30) -> Image.Image:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[20 : 20 + side, left : left + side] = 255
    return Image.fromarray(picture)


@pytest.mark.parametrize(("shift", "least", "most"), [(0, 1, 1), (2, 1, 1), (5, 0.4, 0.6)])
def test_edges_agree_within_two_pixels(shift: int, least: float, most: float) -> None:
    """At a shift of 5, only the upper and the lower sides still lie on each other."""
    assert least <= edge_agreement(square(10), square(10 + shift)) <= most


def test_agreement_falls_with_edges_too_many_and_too_few() -> None:
    """With half of the edges right, F1 is 2/3, whichever picture has the more."""
    both = Image.fromarray(np.maximum(square(2, 20), square(38, 20)))
    for pair in ((square(2, 20), both), (both, square(2, 20))):
        assert edge_agreement(*pair) == pytest.approx(2 / 3, abs=0.02)
    empty = Image.new("RGB", (64, 64))
    assert edge_agreement(square(10), empty) == 0
    assert edge_agreement(empty, empty) == 1


@pytest.mark.slow
def test_the_command_measures_a_controlnet(tmp_path: Path) -> None:
    """One that adds nothing draws what is drawn without it, so both figures are the same."""
    icons = tmp_path / "icons"
    icons.mkdir()
    images = np.stack([np.asarray(square(i).resize((128, 128))) for i in range(4)])
    np.save(icons / "images.npy", images)
    row = {"caption": "a square", "noun": "square", "split": "held_out"}
    rows = [row | {"split": "train"}, row, row, row]
    (icons / "metadata.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    unet = Pipeline.from_pretrained(device="cpu").unet
    save_component(ControlNet.from_unet(unet), tmp_path / "controlnet")
    options = {"--data": icons, "--controlnet": tmp_path / "controlnet", "--steps": 2}
    options |= {"--output": tmp_path / "out", "--prompts": 2}
    assert main([str(part) for pair in options.items() for part in pair]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["icons"] == 2
    assert report["steered"] == report["plain"]
    assert (tmp_path / "out/contact.png").is_file()
