"""A small network that says whether a face or an animal has both of its eyes.

It learns from real icons whose eyes ``eye_shapes`` found: as they are, and with one or both eyes
left out of the drawing, so that nothing but the eyes tells the two apart.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoints.tensors import read_checkpoint, write_tensors
from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation import eye_examples
from tools.builtin_model.evaluation.augment import augment
from tools.builtin_model.evaluation.classifier import convolution, to_float
from tools.builtin_model.evaluation.examples import fingerprint, other_icons
from tools.builtin_model.evaluation.eye_examples import SIDE, EyeExamples, Read
from tools.builtin_model.evaluation.fit import rate
from tools.builtin_model.evaluation.judge import Judged

STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 2000, 64, 2e-3, 0.05
WIDTHS = (32, 64, 96, 128)
NOISE = 0.03  # most of it, of [-1, 1]
FILE = "eyes.safetensors"
KINDS = ("single", "names")  # of prompts whose pictures are judged


class EyeJudge(nn.Module):
    """Pixels (B, 3, SIDE, SIDE) in [-1, 1] → logits (B,), above 0 where both eyes are there."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), convolution(12, WIDTHS[0]), nn.ReLU()]
        for inputs, outputs in itertools.pairwise(WIDTHS):
            layers += [convolution(inputs, outputs, stride=2), nn.ReLU()]
            layers += [convolution(outputs, outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        # The largest value of a channel: eyes may be anywhere.
        self.both = nn.Linear(WIDTHS[-1], 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x.contiguous(memory_format=torch.channels_last)).float()
        return self.both(x.amax((2, 3))).flatten()

    @torch.no_grad()
    def seen(self, pictures: np.ndarray, batch: int = 64) -> list[bool]:
        """Whether each of uint8 (N, H, W, 3) has both eyes, judged with its mirror image."""
        self.eval()
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        parts = [self(part) + self(part.flip(3)) for part in to_float(x).split(batch)]
        return (torch.cat(parts) > 0).tolist() if parts else []


class Counts(NamedTuple):
    """How often the judge is right about held-out icons: hits, and of how many."""

    both: tuple[int, int]  # with both eyes: said to have them
    missing: tuple[int, int]  # the same without one or both: said to lack them
    real: tuple[int, int]  # all of these things, also those whose eyes were not found: said to have


@dataclass(frozen=True)
class Eyed:
    """The judge of eyes, what it may be asked about, and how often it is right."""

    model: EyeJudge
    nouns: frozenset[str]  # faces and animals that icons mostly show with two eyes
    counts: Counts

    def verdicts(self, judged: Sequence[Judged], pictures: Sequence[Any]) -> list[bool]:
        """Whether both eyes are there, of the pictures of KINDS that show such a thing."""
        pairs = zip(judged, pictures, strict=True)
        asked = [np.asarray(p) for j, p in pairs if j.prompt.kind in KINDS and self.knows(j)]
        return self.model.seen(np.stack(asked)) if asked else []

    def knows(self, item: Judged) -> bool:
        """Whether the thing asked for is one that has two eyes."""
        return item.prompt.noun in self.nouns


def trained(
    data: CaptionedImages, folder: Path, archives: Path, log: Callable[[str], None]
) -> Eyed:
    """Load the judge of `folder`, trained first where there is none: ten minutes on one core.

    `archives` is the folder of the icon sets' packages. Raises ArgumentError where the judge there
    was trained on other icons, or a package cannot be had.
    """
    path, digest = folder / FILE, fingerprint(data)
    if path.exists():
        found = read_checkpoint(path)
        if found.metadata.get("data") != digest:
            raise other_icons(path, data)
        model = EyeJudge()
        model.load_state_dict(found.tensors)
        counts = Counts(*(_pair(found.metadata[key]) for key in Counts._fields))
        return Eyed(model.eval(), frozenset(found.metadata["nouns"].split(",")), counts)
    log("looking for the eyes of real icons and training a judge of them: ten minutes, once")
    icons = eye_examples.read(data, archives, log)
    nouns = sorted(set(icons.known.nouns))
    log(f"  {len(icons.known.pictures)} icons with two eyes, of {len(nouns)} things")
    model = fit(icons.known, log)
    counts = measure(model, icons)
    shown = {key: "{}/{}".format(*value) for key, value in counts._asdict().items()}
    write_tensors(model.state_dict(), path, {"data": digest, "nouns": ",".join(nouns)} | shown)
    return Eyed(model, frozenset(nouns), counts)


def _pair(text: str) -> tuple[int, int]:
    first, second = text.split("/")
    return int(first), int(second)


def fit(examples: EyeExamples, log: Callable[[str], None], steps: int = STEPS) -> EyeJudge:
    """Train from scratch, on the present number of threads; half of the pictures have both eyes."""
    torch.manual_seed(0)
    model = EyeJudge().train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done, steps))
    odds = odds_of(examples.nouns)
    for step in range(1, steps + 1):
        chosen = torch.multinomial(odds, BATCH, replacement=True)
        kept = torch.rand(BATCH) < 0.5
        # Of the others: the left one, the right one or both are gone.
        gone = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.bool)[torch.randint(3, (BATCH,))]
        x, _ = augment(to_float(examples.compose(chosen, gone & ~kept[:, None])), SIDE)
        x = x + torch.randn_like(x) * torch.rand(BATCH, 1, 1, 1) * NOISE
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.binary_cross_entropy_with_logits(logits.float(), kept.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            right = ((logits > 0) == kept).float().mean()
            log(f"  step {step}/{steps}, loss {loss:.2f}, right {right:.0%} of the batch")
    return model.eval()


def odds_of(nouns: Sequence[str]) -> Tensor:
    """Odds by which a noun with many icons is seen more often, but less than in proportion."""
    counts: dict[str, int] = defaultdict(int)
    for noun in nouns:
        counts[noun] += 1
    return torch.tensor([counts[noun] ** -0.5 for noun in nouns])


def measure(model: EyeJudge, icons: Read) -> Counts:
    """Count the right verdicts on held-out icons; each has three pictures without eyes."""
    out = icons.held_out
    every = torch.arange(len(out.pictures))

    def seen(left: bool, right: bool) -> list[bool]:
        gone = torch.tensor([left, right]).expand(len(every), 2)
        return model.seen(out.compose(every, gone).permute(0, 2, 3, 1).contiguous().numpy())

    both = seen(False, False)
    without = seen(True, False) + seen(False, True) + seen(True, True)
    real = both + model.seen(icons.eyeless)
    right = (sum(both), len(both)), (len(without) - sum(without), len(without))
    return Counts(*right, (sum(real), len(real)))
