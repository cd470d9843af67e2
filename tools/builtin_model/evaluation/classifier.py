"""A small network that says which everyday thing a picture shows, and in which colour."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoints.tensors import read_tensors, write_tensors

SIZE = 48  # pixels of a side that it looks at
WIDTHS = (96, 224, 448)
POOLED = 2  # side of the last map
ABOUT = "classifier.json"  # is written last


@dataclass(frozen=True)
class Labels:
    """What the outputs of the two heads stand for."""

    nouns: tuple[str, ...]
    colours: tuple[str, ...]


@dataclass(frozen=True)
class Opinion:
    """What the classifier sees in a picture."""

    nouns: tuple[str, ...]  # the likeliest five, best first
    among: str  # the likeliest of the nouns it was told to choose from
    colour: str


class Residual(nn.Module):
    """x + two 3x3 convolutions with batch normalisation (He et al. 2015, figure 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = convolution(width, width), convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Build a 3x3 convolution and its normalisation."""
    layer = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Classifier(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1], SIZE of them a side or so → logits: nouns, colours."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels = labels
        # Blocks of 4x4 pixels become channels: large maps with few channels are slow on CPUs.
        layers: list[nn.Module] = [nn.PixelUnshuffle(4), convolution(3 * 16, WIDTHS[0]), nn.ReLU()]
        for inputs, outputs in itertools.pairwise(WIDTHS):
            layers += [convolution(inputs, outputs, stride=2), nn.ReLU(), Residual(outputs)]
        # Not averaged to one number a channel: where parts are tells a car from a bus.
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(POOLED), nn.Flatten())
        features = WIDTHS[-1] * POOLED**2
        self.nouns = nn.Linear(features, len(labels.nouns))
        self.colours = nn.Linear(features, len(labels.colours))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x.contiguous(memory_format=torch.channels_last)).float()
        return self.nouns(x), self.colours(x)

    @torch.no_grad()
    def features(self, pictures: np.ndarray, batch: int = 64) -> np.ndarray:
        """uint8 (N, H, W, 3) → the last map, averaged over the picture: (N, WIDTHS[-1])."""
        self.eval()
        parts = [self.body(x) for x in to_float(shrink(pictures)).split(batch)]
        return torch.cat(parts).unflatten(1, (-1, POOLED**2)).mean(2).numpy()

    @torch.no_grad()
    def opinions(self, pictures: np.ndarray, among: list[str], batch: int = 64) -> list[Opinion]:
        """Judge uint8 (N, H, W, 3), each averaged with its mirror image.

        `among` are the nouns of the narrower choice.
        """
        narrow = torch.tensor([self.labels.nouns.index(noun) for noun in among])
        self.eval()
        result = []
        for x in to_float(shrink(pictures)).split(batch):
            straight, mirrored = self(x), self(x.flip(3))
            nouns, colours = (
                (a.softmax(1) + b.softmax(1)) / 2 for a, b in zip(straight, mirrored, strict=True)
            )
            best = nouns.topk(5).indices.tolist()
            chosen = nouns[:, narrow].argmax(1).tolist()
            for top, one, colour in zip(best, chosen, colours.argmax(1).tolist(), strict=True):
                five = tuple(self.labels.nouns[i] for i in top)
                result.append(Opinion(five, among[one], self.labels.colours[colour]))
        return result


def shrink(pictures: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) → uint8 (N, 3, SIZE, SIZE), channels last in memory."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", antialias=True)


def to_float(x: Tensor) -> Tensor:
    """uint8 → float32 in [-1, 1]."""
    return x.float() / 127.5 - 1


def save(classifier: Classifier, about: dict, folder: Path) -> None:
    """Write `classifier.safetensors` and, last, `classifier.json` with `about` and the labels."""
    write_tensors(classifier.state_dict(), folder / "classifier.safetensors")
    labels = {"nouns": classifier.labels.nouns, "colours": classifier.labels.colours}
    (folder / ABOUT).write_text(json.dumps(about | labels, indent=1) + "\n")


def load(folder: Path) -> tuple[Classifier, dict]:
    """Load what `save` wrote. Raises CheckpointError for a broken weight file."""
    about = json.loads((folder / ABOUT).read_text())
    labels = Labels(tuple(about.pop("nouns")), tuple(about.pop("colours")))
    classifier = Classifier(labels)
    classifier.load_state_dict(read_tensors(folder / "classifier.safetensors"))
    return classifier.eval(), about
