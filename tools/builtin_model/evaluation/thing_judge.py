"""A network that tells the things of `icons.new_things` from all others; trained in minutes."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation import classifier
from tools.builtin_model.evaluation.augment import augment
from tools.builtin_model.evaluation.classifier import SIZE, Classifier, Labels, shrink, to_float
from tools.builtin_model.evaluation.examples import fingerprint, other_icons, single_rows
from tools.builtin_model.evaluation.fit import rate
from tools.builtin_model.evaluation.things import cut_out, find_things, together
from tools.builtin_model.icons.colour import TONES
from tools.builtin_model.icons.new_things import (
    THINGS,
    NewThing,
    Pose,
    any_pose,
    any_wrong_pose,
    picture,
)
from tools.builtin_model.icons.variants import background_tone

OTHER = "another"
NAMES = (OTHER, *THINGS)
FOLDER = "new_things"  # within that of the other judges
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SMOOTHING = 400, 96, 2e-3, 0.05, 0.05
ICONS, DRAWN = 6000, 400  # pictures of other icons; of each thing, right and wrong
NEAR = 300  # … of each of the icons' things that are most like them
RIGHT, WRONG = 0.3, 0.2  # shares of a batch
WHITE = 0.5  # share of pictures on white
SIDE = 96  # pixels at which things are drawn


def renderings(
    thing: NewThing,
    count: int,
    seed: int,
    pose: Callable[[np.random.Generator], Pose] = any_pose,
) -> np.ndarray:
    """Draw a thing in random poses on random backgrounds: uint8 (count, SIDE, SIDE, 3)."""
    rng = np.random.default_rng([seed, len(thing.word), ord(thing.word[0])])
    colours = [name for name in TONES if name not in (*thing.own, "white")]
    found = []
    for _ in range(count):
        tone = (255, 255, 255)
        if rng.random() >= WHITE:
            tone = background_tone(str(rng.choice(colours)), rng)
        found.append(picture(thing, pose(rng), SIDE, rng.uniform(0.8, 1.0), tone))
    return np.stack(found)


def wrong(thing: NewThing, count: int, seed: int) -> np.ndarray:
    """Draw what is nearly the thing: uint8 (count, SIDE, SIDE, 3)."""
    return renderings(thing, count, seed + 1000, lambda rng: any_wrong_pose(thing, rng))


def others(data: CaptionedImages) -> Tensor:
    """Return icons of training, those most like the things more often: uint8 (N, 3, SIZE, SIZE)."""
    rng = np.random.default_rng(0)
    rows = single_rows(data)
    kinds = {kind for thing in THINGS.values() for kind in thing.near}
    near = [[i for i in rows if data.rows[i]["noun"] == kind] for kind in sorted(kinds)]
    chosen = [rng.permutation(rows)[:ICONS], *(rng.permutation(some)[:NEAR] for some in near)]
    indices = np.unique(np.concatenate(chosen)).astype(int)
    parts = np.array_split(indices, max(len(indices) // 512, 1))
    return torch.cat([shrink(np.asarray(data.images[part])) for part in parts])


def trained(data: CaptionedImages, folder: Path, log: Callable[[str], None]) -> Classifier:
    """Load the judge of `folder`, trained first where there is none: some minutes on one core.

    Raises ArgumentError where the one there was trained on other icons or drawings.
    """
    path = folder / FOLDER
    drawings = "".join(thing.svg(Pose()) for thing in THINGS.values())
    digest = f"{fingerprint(data)}-{hashlib.sha256(drawings.encode()).hexdigest()[:16]}"
    if (path / classifier.ABOUT).exists():
        model, about = classifier.load(path)
        if about.get("data") != digest:
            raise other_icons(path / classifier.ABOUT, data)
        return model
    log("training a judge of new things: some minutes, once")
    model = fit(others(data), log)
    path.mkdir(parents=True, exist_ok=True)
    classifier.save(model, {"data": digest, "steps": STEPS}, path)
    return model


def fit(icons: Tensor, log: Callable[[str], None]) -> Classifier:
    """Train from scratch on other icons, uint8 (N, 3, SIZE, SIZE), and on renderings."""
    torch.manual_seed(0)
    right = [shrink(renderings(thing, DRAWN, 0)) for thing in THINGS.values()]
    nearly = torch.cat([shrink(wrong(thing, DRAWN, 0)) for thing in THINGS.values()])
    labels = torch.arange(1, 1 + len(right)).repeat_interleave(DRAWN)
    things = torch.cat(right)
    model = Classifier(Labels(NAMES, ("any",))).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done, STEPS))
    counts = round(RIGHT * BATCH), round(WRONG * BATCH)
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(things), (counts[0],))
        false = nearly[torch.randint(len(nearly), (counts[1],))]
        some = icons[torch.randint(len(icons), (BATCH - sum(counts),))]
        x, turned = augment(to_float(torch.cat([things[chosen], false, some])), SIZE)
        wanted = torch.cat([labels[chosen], torch.zeros(BATCH - counts[0], dtype=torch.long)])
        # In other colours it is not the thing.
        wanted = wanted.masked_fill(turned, 0)
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = model(x)
        loss = F.cross_entropy(logits.float(), wanted, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == STEPS:
            found = (logits.argmax(1) == wanted).float().mean()
            log(f"  step {step}/{STEPS}, loss {loss:.2f}, right {found:.0%} of the batch")
    return model.eval()


@torch.no_grad()
def seen(model: Classifier, pictures: Sequence[np.ndarray], batch: int = 64) -> list[str]:
    """Name what is in each of uint8 (H, W, 3), its foreground cut out: one of NAMES."""
    crops = []
    for rgb in pictures:
        whole = together(find_things(rgb))
        crops.append(cut_out(rgb, whole, []) if whole else rgb)
    found: list[str] = []
    for x in to_float(shrink(np.stack(crops))).split(batch):
        odds = model(x)[0].softmax(1) + model(x.flip(3))[0].softmax(1)
        found += [NAMES[i] for i in odds.argmax(1).tolist()]
    return found


def accuracy(model: Classifier, data: CaptionedImages, count: int = 100) -> dict[str, float]:
    """Return shares of renderings and icons that training never saw which the judge calls things.

    Of each thing those called by its name, of the rest those called by any.
    """
    found = {}
    for name, thing in THINGS.items():
        right, nearly = renderings(thing, count, 1), wrong(thing, count, 1)
        found[f"{name}: recognised"] = float(np.mean([n == name for n in seen(model, right)]))
        found[f"{name}, other colours or parts missing: taken for it"] = float(
            np.mean([n != OTHER for n in seen(model, nearly)])
        )
    icons = np.asarray(data.images[data.held_out.tolist()])
    found["icons taken for either"] = float(np.mean([n != OTHER for n in seen(model, icons)]))
    return {key: round(value, 4) for key, value in found.items()}
