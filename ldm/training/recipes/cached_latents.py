"""The latents of a data set's pictures, encoded once and kept in the run folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config import write_json
from ldm.errors import CheckpointError, DataError, ImageError
from ldm.training.damage import read_object
from ldm.training.data import Pictures
from ldm.training.data.arrays import map_array
from ldm.training.data.buckets import nearest_bucket
from ldm.training.data.crops import Size
from ldm.training.data.pictures import draw_places
from ldm.training.leftovers import remove
from ldm.vae import AutoencoderKL


@dataclass(frozen=True)
class SizeGroup:
    """The training rows whose pictures have one size."""

    rows: Tensor  # their indices in the data set, (n,)
    weights: Tensor  # how often each is drawn, relative to the others, (n,)
    places: Tensor  # of their latents in the file, (n,)
    latents: np.ndarray  # the file, float16 (N, 1 or 2 with mirrored ones, C, h, w)


class Drawn(NamedTuple):
    """Rows drawn for a batch."""

    rows: Tensor  # their indices in the data set, (B,)
    latents: Tensor  # float32 (B, C, h, w), all of one size
    mirrored: Tensor  # whether the latents are those of the mirrored picture, bool (B,)


class CachedLatents:
    """Means of the VAE's posterior, scaled, float16; a file for each size of pictures.

    Args:
        folder: where the files are kept, which belong to one VAE and one way of reading the data.
        sizes: of pictures, (height, width) in px; each row goes to the one nearest in proportions.
        flip: whether each picture is encoded mirrored, too.
    """

    def __init__(
        self,
        folder: Path,
        vae: AutoencoderKL,
        data: Pictures,
        sizes: Sequence[Size],
        flip: bool,
    ) -> None:
        self.folder, self.vae, self.data, self.flip = folder, vae, data, flip
        self.sizes = list(sizes)

    def prepare(self, accelerator: Accelerator) -> None:
        """Encode every picture, each process its share, unless the files are there.

        What a process that was killed has encoded is kept; damaged files are made again, with a
        warning.
        Raises DataError where no training picture can be read.
        """
        belongs = self._belongs()
        begun, done = self.folder / "begun.json", self.folder / "latents.json"
        if kept(done) != belongs or not self._is_whole():
            main = accelerator.is_main_process
            if main and (kept(begun) != belongs or not self._is_whole(warn=True)):
                self._create()
                write_json(begun, belongs)
            accelerator.wait_for_everyone()
            for size, rows in self._rows_of_sizes():
                share = rows.tensor_split(accelerator.num_processes)[accelerator.process_index]
                self._encode(size, rows, share, accelerator.device)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_json(done, belongs)
        self.groups = self._training_groups()
        self.shares = torch.stack([group.weights.sum() for group in self.groups])

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Draw rows, all of one size of pictures.

        Where there are several sizes, one is drawn first, in proportion to its pictures.
        """
        number = 0
        if len(self.groups) > 1:
            number = int(torch.multinomial(self.shares, 1, generator=generator))
        group = self.groups[number]
        chosen = draw_places(group.weights, count, generator)
        mirrored = torch.zeros(count, dtype=torch.int64)
        if self.flip:
            mirrored = (torch.rand(count, generator=generator) < 0.5).long()
        x0 = group.latents[group.places[chosen].numpy(), mirrored.numpy()]
        return Drawn(group.rows[chosen], torch.from_numpy(x0).float(), mirrored.bool())

    def _belongs(self) -> dict[str, object]:
        return {
            "weights": fingerprint(self.vae),
            "data": self.data.name,
            "rows": len(self.data),
            "options": str(self.data.options),
            "sizes": [list(size) for size in self.sizes],
            "flip": self.flip,
        }

    def _is_whole(self, warn: bool = False) -> bool:
        """Whether all files have the shapes that belong to the data; with a warning, if not."""
        try:
            bucket = map_array(self.folder / "bucket.npy")
            check_array(self.folder / "readable.npy", np.dtype(bool), (len(self.data),))
            check_array(self.folder / "bucket.npy", np.dtype(np.int32), (len(self.data),))
            if not ((bucket >= -1) & (bucket < len(self.sizes))).all():
                raise DataError(f"{self.folder / 'bucket.npy'} names a size that there is not")
            for size, rows in self._rows_of_sizes():
                check_array(self._file(size), np.dtype(np.float16), self._shape(size, rows))
        except DataError as error:
            if warn:
                warnings.warn(f"{error}; the latents are encoded again", stacklevel=2)
            return False
        return True

    def _shape(self, size: Size, rows: Tensor) -> tuple[int, ...]:
        """Return the shape of a size's file."""
        channels, scale = self.vae.config.latent_channels, self.vae.config.scale
        return len(rows), 1 + self.flip, channels, size[0] // scale, size[1] // scale

    def _create(self) -> None:
        """Make the files, still empty: which size each row has, which are readable, latents."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = [self._file(size) for size in self.sizes]
        names = ("latents.json", "begun.json", "bucket.npy", "readable.npy")
        for path in (*(self.folder / name for name in names), *files):
            remove(path)  # whatever stands there
        np.save(self.folder / "bucket.npy", self._assign())
        np.save(self.folder / "readable.npy", np.zeros(len(self.data), bool))
        for size, rows in self._rows_of_sizes():
            shape = self._shape(size, rows)
            np.lib.format.open_memmap(self._file(size), "w+", np.float16, shape).flush()

    def _assign(self) -> np.ndarray:
        """Choose the index of each row's size, int32 (N,); -1 for a picture that has none."""
        bucket = np.zeros(len(self.data), np.int32)
        if len(self.sizes) > 1:
            for row in range(len(bucket)):
                try:
                    bucket[row] = nearest_bucket(self.data.shape(row), self.sizes)
                except ImageError as error:
                    self.data.skipped.add(self.data.row_name(row), str(error))
                    bucket[row] = -1
        return bucket

    def _rows_of_sizes(self) -> list[tuple[Size, Tensor]]:
        """Return the sizes that have pictures, and the rows of each."""
        bucket = np.load(self.folder / "bucket.npy")
        groups = [np.flatnonzero(bucket == i) for i in range(len(self.sizes))]
        pairs = zip(self.sizes, groups, strict=True)
        return [(size, torch.from_numpy(rows)) for size, rows in pairs if len(rows)]

    def _file(self, size: Size) -> Path:
        return self.folder / f"{size[0]}x{size[1]}.npy"

    @torch.no_grad()
    def _encode(self, size: Size, rows: Tensor, share: Tensor, device: torch.device) -> None:
        """Fill in the latents of a share of the rows of one size, where they are missing."""
        latents = np.lib.format.open_memmap(self._file(size), "r+")
        readable = np.lib.format.open_memmap(self.folder / "readable.npy", "r+")
        vae = self.vae.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.autocast(device.type, torch.bfloat16):
            for part in share.split(8):  # 32 at once leave the cache: a quarter slower
                if readable[part.numpy()].all():
                    continue
                part = self.data.readable(part, size)
                if not len(part):
                    continue
                x = self.data.pixels(part, size).to(device)
                places = torch.searchsorted(rows, part).numpy()
                for mirrored in range(1 + self.flip):
                    z = vae.encode(x.flip(-1) if mirrored else x)
                    latents[places, mirrored] = z.float().cpu().numpy()
                readable[part.numpy()] = True
        latents.flush()
        readable.flush()

    def _training_groups(self) -> list[SizeGroup]:
        """Return the readable training rows of each size that has some."""
        readable = torch.from_numpy(np.load(self.folder / "readable.npy"))
        weight = torch.zeros(len(self.data))
        weight[self.data.train] = self.data.weights
        train = torch.zeros(len(self.data), dtype=torch.bool)
        train[self.data.train] = True
        groups = []
        for size, rows in self._rows_of_sizes():
            places = (readable & train)[rows].nonzero()[:, 0]
            if len(places):
                chosen = rows[places]
                latents = np.load(self._file(size), mmap_mode="r")
                groups.append(SizeGroup(chosen, weight[chosen], places, latents))
        if not groups:
            raise DataError(
                f"none of the {len(self.data.train)} training pictures of {self.data.name} "
                "can be used; the warnings above say why"
            )
        return groups


def kept(path: Path) -> dict[str, Any]:
    """Read what files belong to; {} without such a note, or with a damaged one."""
    try:
        return read_object(path)
    except CheckpointError:
        return {}


def check_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Raise DataError for a file that holds no array of this type and shape."""
    found = map_array(path)
    if found.dtype != dtype or found.shape != shape:
        raise DataError(
            f"{path} holds {found.dtype} of shape {found.shape}, not {dtype} of {shape}"
        )


def fingerprint(module: torch.nn.Module) -> float:
    """Compute a number that differs between different weights."""
    return float(sum(tensor.double().abs().sum() for tensor in module.state_dict().values()))
