"""Training of the classifier on real icons: twenty minutes, once for a data set."""

import hashlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation import classifier
from evaluation.classifier import SIZE, Classifier, Labels
from icons.colour import TONES
from icons.nouns import read_everyday
from ldm.errors import ArgumentError
from ldm.training.data import CaptionedImages

MIN_ICONS = 2  # a noun with fewer in training cannot be learnt
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 4400, 128, 2e-3, 0.05
# The first steps see pictures of 32 pixels, at half the cost. To larger ones it must get used at a
# high rate: begun after 0.8 of the steps, they left 84 % of a batch right, where 97 % had been.
SMALL, SMALL_SHARE = 32, 0.4
WARMUP = 0.05  # share of the steps
COLOUR_WEIGHT, SMOOTHING = 0.5, 0.1
NO_COLOUR = -100  # cross_entropy leaves these out
HUES_TURNED, BLURRED = 0.25, 0.3  # shares of pictures
# Radians; factors of the picture's side (above 1 the thing is smaller); half the picture's side.
TURN, SCALE, MOVE = 0.15, (0.85, 1.4), 0.12

_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def kind(row: dict[str, Any]) -> str:
    """What a row shows: "one" icon that fills the picture, "placed", "two" or "several" things."""
    return row.get("kind", "one")


def single_rows(data: CaptionedImages) -> list[int]:
    """Rows of the training split that show one icon, and know which thing it is."""
    rows = data.train.tolist()
    return [i for i in rows if kind(data.rows[i]) == "one" and data.rows[i]["noun"]]


def known_nouns(data: CaptionedImages) -> list[str]:
    """The things of the everyday table that enough icons of the training split show, sorted."""
    everyday = {noun.noun for noun in read_everyday()}
    icons = defaultdict(set)
    for row in (data.rows[i] for i in single_rows(data)):
        icons[row["noun"]].add((row["set"], row["icon"]))
    return sorted(n for n, names in icons.items() if n in everyday and len(names) >= MIN_ICONS)


def fingerprint(data: CaptionedImages) -> str:
    """Changes whenever the icons, what they show, or which are held out, do.

    Captions, scenes of several icons and the number of each icon's pictures may change.
    """
    keys = ("split", "set", "icon", "noun")
    icons = {tuple(row[key] for key in keys) for row in data.rows if kind(row) == "one"}
    return hashlib.sha256(json.dumps(sorted(icons, key=str)).encode()).hexdigest()[:16]


def trained(data: CaptionedImages, folder: Path, say: Callable[[str], None]) -> Classifier:
    """The classifier of `folder`, trained first where there is none.

    Raises ArgumentError where the one there was trained on another data set.
    """
    digest = fingerprint(data)
    if (folder / "classifier.json").exists():
        model, about = classifier.load(folder)
        if about["data"] != digest:
            raise ArgumentError(
                f"{folder / 'classifier.json'} is of another data set than {data.folder}; "
                "delete it, or choose another --output"
            )
        return model
    say(f"training the classifier on the icons of {data.folder}: twenty minutes, once")
    started = time.monotonic()
    model = fit(data, Labels(tuple(known_nouns(data)), tuple(TONES)), STEPS, say)
    about = {"data": digest, "steps": STEPS, "seconds": round(time.monotonic() - started)}
    classifier.save(model, about, folder)
    return model


def fit(
    data: CaptionedImages,
    labels: Labels,
    steps: int,
    say: Callable[[str], None],
    batch: int = BATCH,
) -> Classifier:
    """Train from scratch on pictures of the training split, on the present number of threads."""
    torch.manual_seed(0)
    rows = [i for i in single_rows(data) if data.rows[i]["noun"] in labels.nouns]
    pictures = shrunk(data, rows)
    nouns = torch.tensor([labels.nouns.index(data.rows[i]["noun"]) for i in rows])
    names = [data.rows[i]["colour"] for i in rows]
    colours = torch.tensor([labels.colours.index(c) if c else NO_COLOUR for c in names])
    # A noun with many icons (hands) is seen more often, but less than in proportion.
    odds = torch.bincount(nouns).float().rsqrt()[nouns]

    model = Classifier(labels).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done, steps))
    for step in range(1, steps + 1):
        chosen = torch.multinomial(odds, batch, replacement=True)
        size = SMALL if step <= SMALL_SHARE * steps else SIZE
        x, turned = augment(classifier.to_float(pictures[chosen]), size)
        with torch.autocast("cpu", torch.bfloat16):
            noun_logits, colour_logits = model(x)
        wanted = colours[chosen].masked_fill(turned, NO_COLOUR)
        loss = F.cross_entropy(noun_logits, nouns[chosen], label_smoothing=SMOOTHING)
        loss = loss + COLOUR_WEIGHT * F.cross_entropy(colour_logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            right = (noun_logits.argmax(1) == nouns[chosen]).float().mean()
            say(f"  step {step}/{steps}, loss {loss:.2f}, right {right:.0%} of the batch")
    return model.eval()


def rate(done: int, steps: int) -> float:
    """Factor of the learning rate after `done` of `steps`: a linear rise, then half a cosine."""
    rise = max(WARMUP * steps, 1)
    if done < rise:
        return (done + 1) / (rise + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (done - rise) / (steps - rise))


def shrunk(data: CaptionedImages, rows: list[int], chunk: int = 512) -> Tensor:
    """Pictures of `rows` at the classifier's size: uint8 (N, 3, SIZE, SIZE)."""
    parts = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
    return torch.cat([classifier.shrink(data.images[part]) for part in parts])


def augment(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Move, scale, turn and mirror pictures (B, 3, H, W); blur some; turn the hues of some.

    Returns pictures of `size` pixels a side, and (B,) bool: hues turned, so that the colour word is
    no longer true. Those teach that shape, not colour, makes a lemon: red ones are asked for too.
    """
    count = len(x)
    angle, scale = torch.empty(count).uniform_(-TURN, TURN), torch.empty(count).uniform_(*SCALE)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    dx, dy = torch.empty(2, count).uniform_(-MOVE, MOVE)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([mirror * cos, -sin, dx, mirror * sin, cos, dy], 1).view(count, 2, 3)
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    blurred = torch.rand(count) < BLURRED
    soft = F.avg_pool2d(x[blurred], 2)
    x[blurred] = F.interpolate(soft, scale_factor=2.0, mode="bilinear", align_corners=False)
    turned = torch.rand(count) < HUES_TURNED
    x[turned] = turn_hues(x[turned], torch.empty(int(turned.sum())).uniform_(0.5, 5.8))
    return x, turned


def turn_hues(x: Tensor, angle: Tensor) -> Tensor:
    """Turn the hue of RGB pictures (B, 3, H, W) by `angle` (B,) radians in YIQ; grays stay."""
    turn = torch.eye(3).repeat(len(angle), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = _TO_YIQ.inverse() @ turn @ _TO_YIQ
    return torch.einsum("bij,bjhw->bihw", matrix, x).clamp(-1, 1)
