"""The judge of eyes, on faces drawn here."""

import numpy as np
import pytest
import torch

from tools.builtin_model.evaluation import eye_examples, eye_shapes, eyes
from tools.builtin_model.icons.nouns import Noun, Subject
from tools.builtin_model.icons.sources import Icon

resvg = pytest.importorskip("resvg_py")
FACE = '<circle cx="16" cy="16" r="14" fill="#ffcc4d"/>'
LEFT, RIGHT = (f'<circle cx="{x}" cy="12" r="2" fill="#222"/>' for x in (11, 21))
MOUTH = '<ellipse cx="16" cy="23" rx="5" ry="2" fill="#622"/>'


def icon(body: str, name: str = "face") -> Icon:
    return Icon("noto", name, None, body, (0, 0, 32, 32))


def luma(picture: np.ndarray, x: float, y: float) -> float:
    """Of the pixel at a place in the icon's own units."""
    side = len(picture)
    return float(picture[int(y / 32 * side), int(x / 32 * side), :3].mean())


@pytest.mark.parametrize(
    "shapes",
    [
        LEFT + RIGHT,
        # Both in one path with the mouth, as some sets draw them.
        '<path fill="#222" d="M9 12a2 2 0 1 0 4 0a2 2 0 1 0-4 0M19 12a2 2 0 1 0 4 0a2 2 0 1 0-4 0'
        'M12 22h8v3h-8z"/>',
        f'<g transform="translate(0 0)">{LEFT}{RIGHT}<circle cx="11.5" cy="11.5" r=".6" fill="#fff"'
        "/></g>",
    ],
)
def test_eyes_are_found_and_left_out(shapes):
    face = icon(FACE + shapes + MOUTH)
    found = eye_shapes.find_eyes(face)
    np.testing.assert_allclose(found.middles * 32, [[11, 12], [21, 12]], atol=0.5)
    with_eyes, without = (eye_shapes.pixels(i, 96) for i in (face, found.without))
    assert luma(with_eyes, 10.2, 12.8) < 60 and luma(with_eyes, 21, 12.5) < 60
    assert luma(without, 11, 12) > 120 and luma(without, 21, 12) > 120


@pytest.mark.parametrize(
    "body",
    [
        FACE + LEFT + MOUTH,  # one
        FACE + '<circle cx="11" cy="12" r="3" fill="#222"/>' + RIGHT,  # of two sizes
        FACE + LEFT.replace("12", "6") + RIGHT.replace("12", "12"),  # not level
        FACE + LEFT.replace("12", "25") + RIGHT.replace("12", "25"),  # feet
        FACE + LEFT.replace("#222", "#fe4") + RIGHT.replace("#222", "#fe4"),  # pale
        "<circle",  # broken
    ],
)
def test_what_are_no_two_eyes(body):
    assert eye_shapes.find_eyes(icon(body)) is None


def test_shapes_that_others_only_refer_to_are_not_drawn():
    root = eye_shapes.parse(f"<defs>{LEFT}</defs><g>{FACE}<clipPath>{RIGHT}</clipPath></g>")
    assert len(list(eye_shapes.drawn_shapes(root))) == 1


def faces(count: int) -> eye_examples.EyeExamples:
    """Faces of several sizes and shades."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        radius, shade = rng.uniform(1.6, 2.4), rng.choice(["#ffcc4d", "#b98", "#8ac"])
        body = FACE.replace("#ffcc4d", shade) + (LEFT + RIGHT).replace('r="2"', f'r="{radius}"')
        face = icon(body + MOUTH, str(number))
        rows.append(
            (Subject(face, "face", Noun("face", ("face",), ())), eye_shapes.find_eyes(face))
        )
    return eye_examples.drawn(rows)


def test_either_eye_can_be_left_out():
    found = faces(2)
    gone = torch.tensor([[True, False], [False, True], [False, False], [True, True]])
    pictures = found.compose(torch.tensor([0, 0, 0, 0]), gone).permute(0, 2, 3, 1).numpy()
    margin = (1 - eye_examples.SCALE) * 16
    there = [
        [luma(p, x * eye_examples.SCALE + margin, 12 * eye_examples.SCALE + margin) < 60
         for x in (11, 21)]
        for p in pictures
    ]  # fmt: skip
    assert there == (~gone).tolist()


def test_a_noun_needs_two_eyes_in_most_of_its_icons():
    def subject(noun: str, name: str) -> Subject:
        return Subject(icon(FACE, name), noun, Noun(noun, (noun,), ()))

    cats, fish = ([subject(noun, f"{noun}{i}") for i in range(5)] for noun in ("cat", "fish"))
    found = cats[:3] + fish[:2] + [subject("owl", "owl")]
    every = [*cats, *fish, subject("owl", "owl")]
    assert eye_examples.mostly_with_eyes(every, found) == {"cat"}  # of owls there are too few


def test_the_judge_learns_whether_both_are_there(monkeypatch):
    monkeypatch.setattr(eyes, "BATCH", 16)
    monkeypatch.setattr(eyes, "WIDTHS", (16, 32, 32, 32))
    monkeypatch.setattr(eyes, "augment", lambda x, size: (x, None))  # which needs many more steps
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    known = faces(12)
    model = eyes.fit(known, lambda text: None, steps=60)
    icons = eye_examples.Read(known, known, np.full((4, 96, 96, 3), 255, np.uint8))
    counts = eyes.measure(model, icons)
    torch.set_num_threads(threads)
    assert counts.both[1] == 12 and counts.missing[1] == 36 and counts.real[1] == 16
    assert counts.both[0] >= 11 and counts.missing[0] >= 32
