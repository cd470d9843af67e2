"""Training of the classifier on real icons: an hour on one core, once for a data set."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation import classifier, other_sets
from tools.builtin_model.evaluation.augment import augment, mix
from tools.builtin_model.evaluation.classifier import SIZE, Classifier, Labels
from tools.builtin_model.evaluation.examples import (
    Examples,
    fingerprint,
    known_nouns,
    of_training,
    other_icons,
)
from tools.builtin_model.icons.colour import TONES

STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 8000, 128, 2e-3, 0.05
# The first steps see pictures of 32 pixels, at half the cost. To larger ones it must get used at a
# high rate: begun after 0.8 of the steps, they left 84 % of a batch right, where 97 % had been.
SMALL, SMALL_SHARE = 32, 0.4
WARMUP = 0.05  # share of the steps
COLOUR_WEIGHT, SMOOTHING = 0.5, 0.1
NO_COLOUR = -100  # cross_entropy leaves these out


def trained(
    data: CaptionedImages, folder: Path, archives: Path, log: Callable[[str], None]
) -> Classifier:
    """Load the classifier of `folder`, trained first where there is none.

    `archives` is the folder of the icon sets' packages, which are fetched where they are missing.
    Raises ArgumentError where the one there was trained on other icons, or a package cannot be had.
    """
    about = {"data": fingerprint(data), "more": [p.archive for p in other_sets.SETS.values()]}
    if (folder / classifier.ABOUT).exists():
        model, found = classifier.load(folder)
        if {key: found.get(key) for key in about} != about:
            raise other_icons(folder / classifier.ABOUT, data)
        return model
    log(f"training the classifier on the icons of {data.folder} and more: an hour, once")
    nouns = known_nouns(data)
    examples = of_training(data, set(nouns)) + other_sets.examples(data, set(nouns), archives)
    log(f"  {len(examples.nouns)} pictures of {len(nouns)} things")
    started = time.monotonic()
    model = fit(examples, Labels(tuple(nouns), tuple(TONES)), STEPS, log)
    classifier.save(
        model, about | {"steps": STEPS, "seconds": round(time.monotonic() - started)}, folder
    )
    return model


def fit(
    examples: Examples,
    labels: Labels,
    steps: int,
    log: Callable[[str], None],
    batch: int = BATCH,
) -> Classifier:
    """Train from scratch, on the present number of threads."""
    torch.manual_seed(0)
    nouns = torch.tensor([labels.nouns.index(noun) for noun in examples.nouns])
    names = examples.colours
    colours = torch.tensor([labels.colours.index(c) if c else NO_COLOUR for c in names])
    # A noun with many icons (hands) is seen more often, but less than in proportion.
    odds = torch.bincount(nouns).float().rsqrt()[nouns]

    model = Classifier(labels).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done, steps))
    for step in range(1, steps + 1):
        chosen = torch.multinomial(odds, batch, replacement=True)
        size = SMALL if step <= SMALL_SHARE * steps else SIZE
        x, turned = augment(classifier.to_float(examples.pictures[chosen]), size)
        x, other, share = mix(x)
        with torch.autocast("cpu", torch.bfloat16):
            noun_logits, colour_logits = model(x)
        wanted = colours[chosen].masked_fill(turned | (share < 1), NO_COLOUR)
        targets = F.one_hot(nouns[chosen], len(labels.nouns)) * share[:, None]
        targets += F.one_hot(nouns[chosen[other]], len(labels.nouns)) * (1 - share[:, None])
        loss = F.cross_entropy(noun_logits, targets, label_smoothing=SMOOTHING)
        loss = loss + COLOUR_WEIGHT * F.cross_entropy(colour_logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            alone = share == 1
            right = (noun_logits.argmax(1) == nouns[chosen])[alone].float().mean()
            log(f"  step {step}/{steps}, loss {loss:.2f}, right {right:.0%} of the batch")
    return model.eval()


def rate(done: int, steps: int) -> float:
    """Factor of the learning rate after `done` of `steps`: a linear rise, then half a cosine."""
    rise = max(WARMUP * steps, 1)
    if done < rise:
        return (done + 1) / (rise + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (done - rise) / (steps - rise))
