"""Three things that the built-in model does not know, for fine-tuning on a few pictures.

Each is drawn in any pose, and wrongly on purpose (other colours, parts missing), so that a judge
learns what makes the thing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import ImageOps

from .sources import Icon, render
from .variants import paste

SIDE, ROOM = 128, 12  # of the drawings' coordinates; around them, for what is tilted
MOUTHS = ("smile", "open", "flat")
DARK, GRAY, LIGHT = "#2b2440", "#9aa3b2", "#f6f4fb"


@dataclass(frozen=True)
class Pose:
    """How a thing is drawn; the defaults are its plainest."""

    tilt: float = 0.0  # degrees
    look: tuple[float, float] = (0.0, 0.0)  # where pupils go, in [-1, 1]
    sway: float = 0.0  # of feelers or horns, in [-1, 1]
    grown: float = 1.0  # of the shell or the eye
    mouth: str = "smile"
    mirrored: bool = False
    colours: dict[str, str] = field(default_factory=dict)  # in place of the thing's own
    missing: frozenset[str] = frozenset()  # parts that are left out


@dataclass(frozen=True)
class NewThing:
    """A thing, its made-up word, and what is known of it."""

    word: str
    noun: str  # of the model's things the nearest: the class of DreamBooth
    described: str  # the best that the model can be asked for instead of the word
    colours: dict[str, str]
    parts: tuple[str, ...]  # that it is not itself without
    body: Callable[["Pose", dict[str, str]], str]
    own: tuple[str, ...]  # words for its colours: backgrounds that hide it
    near: tuple[str, ...]  # the model's things that are most like it

    def svg(self, pose: Pose) -> str:
        """Write the SVG body of a pose, SIDE units a side."""
        middle = SIDE / 2
        return (
            f'<g transform="rotate({pose.tilt:.1f} {middle} {middle})">'
            f"{self.body(pose, self.colours | pose.colours)}</g>"
        )


def robot_snail(pose: Pose, colours: dict[str, str]) -> str:
    """Draw a snail whose head is a robot's, with a screen for a face."""
    body, shade, shell, line = (colours[key] for key in ("body", "shade", "shell", "line"))
    x, y = 99 + 3 * pose.look[0], 52 + 3 * pose.look[1]
    parts = [
        f'<path fill="{body}" d="M8 112q-4-12 10-16h66v-36h30v30q0 22-20 22z"/>'
        f'<path fill="{shade}" d="M8 112q2 6 10 6h72q14 0 20-14q-6 8-16 8z"/>'
    ]
    if "head" not in pose.missing:
        for side in (-1, 1):
            tip = 99 + side * 11 + 8 * pose.sway
            parts.append(
                f'<path stroke="{GRAY}" stroke-width="4" d="M{99 + side * 8} 34L{tip:.1f} 14"/>'
                f'<circle cx="{tip:.1f}" cy="12" r="6" fill="{shell}"/>'
            )
        parts.append(
            f'<rect x="76" y="30" width="46" height="42" rx="9" fill="{body}"/>'
            f'<rect x="81" y="37" width="36" height="28" rx="6" fill="{DARK}"/>'
            f'<circle cx="{x - 8:.1f}" cy="{y - 4:.1f}" r="4.5" fill="#63f0e0"/>'
            f'<circle cx="{x + 8:.1f}" cy="{y - 4:.1f}" r="4.5" fill="#63f0e0"/>'
            + _mouth(pose, x, y + 6, 7, "#63f0e0")
        )
    if "shell" not in pose.missing:
        radius = 33 * pose.grown
        parts.append(
            f'<circle cx="45" cy="68" r="{radius:.1f}" fill="{shell}"/>'
            f'<path fill="none" stroke="{line}" stroke-width="7" stroke-linecap="round" '
            f'transform="translate(45 68) scale({pose.grown:.2f})" '
            'd="M2 2q-8 2-7-6q3-11 14-7q13 7 6 20q-10 14-26 6q-17-13-8-31"/>'
            + "".join(
                f'<circle cx="{45 + radius * 0.8 * dx:.1f}" cy="{68 + radius * 0.8 * dy:.1f}" '
                f'r="3.5" fill="{LIGHT}"/>'
                for dx, dy in ((0.8, -0.6), (0.9, 0.4), (0, 1), (-0.9, 0.4))
            )
        )
    return "".join(parts)


def cyclops_imp(pose: Pose, colours: dict[str, str]) -> str:
    """Draw a round face with one eye, two horns and a tooth."""
    face, shade, horn, line = (colours[key] for key in ("face", "shade", "horn", "line"))
    parts = []
    if "horns" not in pose.missing:
        for side in (-1, 1):
            tip = 64 + side * (52 + 5 * pose.sway)
            parts.append(
                f'<path fill="{horn}" stroke="{line}" stroke-width="2" d="M{64 + side * 18} 34Q'
                f'{64 + side * 36} 24 {tip:.1f} 4Q{64 + side * 62} 40 {64 + side * 44} 56z"/>'
            )
    parts.append(
        f'<circle cx="64" cy="74" r="50" fill="{shade}"/><circle cx="64" cy="71" r="47" '
        f'fill="{face}"/>'
    )
    radius = 19 * pose.grown
    eyes = (64.0,) if "one eye" not in pose.missing else (44.0, 84.0)
    radius *= 1 if len(eyes) == 1 else 0.6
    for at in eyes:
        x, y = at + 0.4 * radius * pose.look[0], 60 + 0.4 * radius * pose.look[1]
        parts.append(
            f'<circle cx="{at}" cy="60" r="{radius:.1f}" fill="{LIGHT}"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius * 0.5:.1f}" fill="{DARK}"/>'
        )
    parts.append(_mouth(pose, 64, 94, 22, DARK))
    parts.append(f'<path fill="{LIGHT}" d="M70 95h9l-4 11z"/>')
    return "".join(parts)


def two_tone_mushroom(pose: Pose, colours: dict[str, str]) -> str:
    """Draw a mushroom whose cap and stem have colours of their own, with dots."""
    cap, shade, stem, dots = (colours[key] for key in ("cap", "shade", "stem", "dots"))
    parts = []
    if "stem" not in pose.missing:
        wide, foot = 18 * pose.grown, 64 + 5 * pose.sway
        parts.append(
            f'<path fill="{stem}" d="M{64 - wide:.1f} 66h{2 * wide:.1f}Q{foot + 17:.1f} 96 '
            f"{foot + 25:.1f} 114Q{foot:.1f} 124 {foot - 25:.1f} 114Q{foot - 17:.1f} 96 "
            f'{64 - wide:.1f} 66z"/>'
        )
    parts.append(
        f'<path fill="{shade}" d="M8 70Q10 12 64 12Q118 12 120 70Q64 88 8 70z"/>'
        f'<path fill="{cap}" d="M8 68Q10 12 64 12Q118 12 120 68Q64 80 8 68z"/>'
    )
    for x, y, radius in ((40, 40, 10), (76, 32, 9), (99, 55, 8), (65, 58, 8), (21, 59, 5)):
        at = f'cx="{x + 3 * pose.look[0]:.1f}" cy="{y + 2 * pose.look[1]:.1f}"'
        parts.append(f'<circle {at} r="{radius}" fill="{dots}"/>')
    return "".join(parts)


def _mouth(pose: Pose, x: float, y: float, half: float, colour: str) -> str:
    left, right = x - half, x + half
    stroke = f'fill="none" stroke="{colour}" stroke-width="{max(half / 5, 2.5):.1f}"'
    if pose.mouth == "open":
        return (
            f'<path fill="{colour}" d="M{left:.1f} {y:.1f}H{right:.1f}'
            f'Q{x:.1f} {y + 1.6 * half:.1f} {left:.1f} {y:.1f}z"/>'
        )
    bend = y + half if pose.mouth == "smile" else y
    return f'<path {stroke} d="M{left:.1f} {y:.1f}Q{x:.1f} {bend:.1f} {right:.1f} {y:.1f}"/>'


THINGS = {
    "robot-snail": NewThing(
        "zwilbo",
        "snail",
        "purple robot snail",
        {"body": "#7d45cf", "shade": "#5a2b9e", "shell": "#ff9a2e", "line": "#d9660b"},
        ("shell", "head"),
        robot_snail,
        ("purple", "orange"),
        ("robot", "snail"),
    ),
    "cyclops-imp": NewThing(
        "grimpox",
        "devil",
        "green one-eyed devil",
        {"face": "#4fbf4b", "shade": "#2f9434", "horn": "#ff9a2e", "line": "#d9660b"},
        ("horns", "one eye"),
        cyclops_imp,
        ("green", "orange"),
        ("alien", "devil", "frog", "monster", "sick face", "smiley face"),
    ),
    # The nearest to what the model draws, for a word alone.
    "two-tone-mushroom": NewThing(
        "tilvora",
        "mushroom",
        "purple mushroom",
        {"cap": "#7d45cf", "shade": "#5a2b9e", "stem": "#4fbf4b", "dots": "#f7e26b"},
        ("stem",),
        two_tone_mushroom,
        ("purple", "green"),
        ("mushroom", "umbrella"),
    ),
}
OTHER_COLOURS = ("#e0393e", "#f2d13a", "#3f86e8", "#f28cb8", "#8a5a3a", "#8d939c", "#f3f1ee",
                 "#333238", "#2fb3a6", "#7d45cf", "#4fbf4b", "#ff9a2e")  # fmt: skip


def any_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose."""
    return Pose(
        tilt=float(rng.uniform(-12, 12)),
        look=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
        sway=float(rng.uniform(-1, 1)),
        grown=float(rng.uniform(0.88, 1.08)),
        mouth=str(rng.choice(MOUTHS)),
        mirrored=bool(rng.random() < 0.5),
    )


def any_wrong_pose(thing: NewThing, rng: np.random.Generator) -> Pose:
    """Draw a pose of what is nearly the thing: in other colours, or without a part of it."""
    pose = any_pose(rng)
    if rng.random() < 0.4:
        return Pose(**{**vars(pose), "missing": frozenset([str(rng.choice(thing.parts))])})
    main, _, second, _ = thing.colours  # a colour and its shade, twice
    which = ((main,), (second,), (main, second))[int(rng.integers(3))]
    colours = {}
    for key in which:
        others = [c for c in OTHER_COLOURS if c.lower() != thing.colours[key]]
        colours[key] = str(rng.choice(others))
    return Pose(**{**vars(pose), "colours": colours})


def picture(
    thing: NewThing,
    pose: Pose,
    size: int,
    scale: float = 1.0,
    tone: tuple[int, int, int] = (255, 255, 255),
    at: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Draw the thing on a plain background: uint8 (size, size, 3).

    `scale` is its side's share of the picture's, `at` where it is in the room that is free.
    """
    side = round(size * scale)
    box = (-ROOM, -ROOM, SIDE + 2 * ROOM, SIDE + 2 * ROOM)
    drawing = render(Icon("new", thing.word, None, thing.svg(pose), box), side)
    if pose.mirrored:
        drawing = ImageOps.mirror(drawing)
    canvas = np.full((size, size, 3), tone, np.uint8)
    paste(canvas, np.asarray(drawing), round((size - side) * at[0]), round((size - side) * at[1]))
    return canvas
