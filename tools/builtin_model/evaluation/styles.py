"""A network that says in the style of which icon set a picture is drawn; trained in minutes."""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoints.tensors import read_checkpoint, write_tensors
from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation.classifier import convolution, to_float
from tools.builtin_model.evaluation.examples import fingerprint, other_icons, plain_rows
from tools.builtin_model.evaluation.fit import rate
from tools.builtin_model.icons import new_style
from tools.builtin_model.icons.captions import STYLES
from tools.builtin_model.icons.nouns import Subject

WORDS = tuple(STYLES.values())
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, SMOOTHING = 1500, 64, 2e-3, 0.05, 0.05
WIDTHS = (64, 128, 192)
SIDES = range(96, 137, 8)  # pixels to which pictures are scaled in training
NOISE, BLURRED = 0.03, 0.3  # most of it, of [-1, 1]; share of batches
PICTURES = 8  # of an icon of another set, before those in other colours are left out
FLOOR = 1e-3  # keeps the slope of a deviation finite where a channel is all alike


class StyleJudge(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] → logits (B, len(styles)).

    It sees each channel's mean and deviation over the picture, at three sizes, and not where what
    is: these are what a picture's style is (Huang & Belongie 2017, section 3; Gatys et al. 2016).
    """

    def __init__(self, styles: Sequence[str] = WORDS) -> None:
        super().__init__()
        self.styles = tuple(styles)
        widths = (32, *WIDTHS)
        self.first = nn.Sequential(nn.PixelUnshuffle(2), convolution(12, widths[0]), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(
                convolution(inputs, outputs, stride=2),
                nn.ReLU(),
                convolution(outputs, outputs),
                nn.ReLU(),
            )
            for inputs, outputs in itertools.pairwise(widths)
        )
        self.words = nn.Linear(2 * sum(WIDTHS), len(self.styles))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        statistics = []
        for stage in self.stages:
            x = stage(x)
            variance, mean = torch.var_mean(x.float(), (2, 3))
            statistics += [mean, (variance + FLOOR).sqrt()]
        return self.words(torch.cat(statistics, 1))

    @torch.no_grad()
    def seen(self, pictures: np.ndarray, batch: int = 32) -> list[str]:
        """Name the style of each of uint8 (N, H, W, 3), each judged with its mirror image."""
        self.eval()
        parts = to_float(torch.from_numpy(pictures).permute(0, 3, 1, 2)).split(batch)
        best = [(self(x) + self(x.flip(3))).argmax(1) for x in parts]
        return [self.styles[i] for i in torch.cat(best).tolist()]


def trained(
    data: CaptionedImages,
    folder: Path,
    log: Callable[[str], None],
    more: Mapping[str, np.ndarray] | None = None,
) -> StyleJudge:
    """Load the judge of `folder`, trained first where there is none: 15 minutes on one core.

    `more` are plain pictures, uint8 (N, H, W, 3) as large as the data's, of further styles by
    their words; judges of other styles have other files. Raises ArgumentError where the one there
    was trained on other icons.
    """
    more = more or {}
    styles = (*WORDS, *more)
    path = folder / ("-".join(["styles", *more]) + ".safetensors")
    digest = "-".join([fingerprint(data), *map(hash_of, more.values())])
    if path.exists():
        found = read_checkpoint(path)
        if found.metadata.get("data") != digest:
            raise other_icons(path, data)
        model = StyleJudge(styles)
        model.load_state_dict(found.tensors)
        return model.eval()
    log(f"training a judge of styles on the icons of {data.folder}: a quarter of an hour, once")
    model = fit(data, log, more)
    write_tensors(model.state_dict(), path, {"data": digest})
    return model


def hash_of(pictures: np.ndarray) -> str:
    """Return a key that changes with the pictures."""
    return hashlib.sha256(np.ascontiguousarray(pictures)).hexdigest()[:16]


def new_examples(subjects: Sequence[Subject], size: int) -> np.ndarray:
    """Draw icons of the new style as those of ``plain_rows`` are: uint8 (N, size, size, 3)."""
    drawn = (pair for s in subjects for pair in new_style.pictures(s, PICTURES, size, 0))
    return np.stack([p for p, row in drawn if not row.colour and row.background in (None, "white")])


def fit(
    data: CaptionedImages, log: Callable[[str], None], more: Mapping[str, np.ndarray] | None = None
) -> StyleJudge:
    """Train from scratch, on the present number of threads."""
    torch.manual_seed(0)
    styles = (*WORDS, *(more or {}))
    rows = torch.tensor(plain_rows(data))
    named = [STYLES[data.rows[i]["set"]] for i in rows.tolist()]
    extra = torch.empty(0, *data.images.shape[1:], dtype=torch.uint8)
    for word, pictures in (more or {}).items():
        extra = torch.cat([extra, torch.from_numpy(pictures)])
        named += [word] * len(pictures)
    words = torch.tensor([styles.index(word) for word in named])
    # Every style as often as the others.
    odds = torch.bincount(words, minlength=len(styles)).float().reciprocal()[words]

    def pixels(chosen: Tensor) -> Tensor:
        own = chosen < len(rows)
        x = torch.empty(len(chosen), *extra.permute(0, 3, 1, 2).shape[1:])
        x[own] = data.pixels(rows[chosen[own]])
        x[~own] = to_float(extra[chosen[~own] - len(rows)].permute(0, 3, 1, 2))
        return x

    model = StyleJudge(styles).train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(done, STEPS))
    for step in range(1, STEPS + 1):
        chosen = torch.multinomial(odds, BATCH, replacement=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(changed(pixels(chosen)))
        loss = F.cross_entropy(logits.float(), words[chosen], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == STEPS:
            right = (logits.argmax(1) == words[chosen]).float().mean()
            log(f"  step {step}/{STEPS}, loss {loss:.2f}, right {right:.0%} of the batch")
    return model.eval()


def changed(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) at another size, mirrored, noisy or soft: style is none of these.

    Without noise and softness, the rendering of the icons itself would tell sets apart, and
    pictures that a VAE decoded have another.
    """
    side = SIDES[int(torch.randint(len(SIDES), ()))]
    x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    if torch.rand(()) < 0.5:
        x = x.flip(3)
    x = x + torch.randn_like(x) * torch.rand(len(x), 1, 1, 1) * NOISE
    if torch.rand(()) < BLURRED:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x
