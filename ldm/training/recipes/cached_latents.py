"""The latents of a data set's pictures, encoded once and kept in the run folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config import write_json
from ldm.errors import DataError
from ldm.training.data import Pictures
from ldm.training.data.arrays import map_array
from ldm.training.data.crops import Size
from ldm.training.data.masks import Masks
from ldm.training.recipes.array_files import (
    Layout,
    check_array,
    create_arrays,
    differences,
    fingerprint,
    kept,
    open_array,
)
from ldm.training.recipes.counted import counted
from ldm.training.recipes.encoded_rows import EncodedRows, RowEncoder, time_ids_of
from ldm.training.recipes.size_groups import (
    SizeGroup,
    assign_sizes,
    choose,
    class_pictures_of,
    count_instances,
    rows_of_sizes,
    training_groups,
)
from ldm.vae import AutoencoderKL

FORM = 2  # of the files; 1 had no crops
# What a cache belongs to, in the words of a warning.
REASONS = {
    "form": "an older version of ldm",
    "weights": "another VAE",
    "data": "another data set",
    "rows": "other pictures",
    "options": "other options.data",
    "sizes": "other sizes",
    "flip": "another data.flip",
    "class_pictures": "other class pictures",
}


class Drawn(NamedTuple):
    """Rows drawn for a batch."""

    rows: Tensor  # their indices in the data set, (B,)
    latents: Tensor  # float32 (B, C, h, w), all of one size
    mirrored: Tensor  # whether the latents are those of the mirrored picture, bool (B,)
    time_ids: Tensor  # the sizes that SDXL reads, float32 (B, 6)
    masks: Tensor | None  # float32 (B, 1, h, w) in [0, 1]; None without masks


class CachedLatents:
    """What ``RowEncoder`` computes of each picture; files for each size of pictures.

    Class pictures (DreamBooth) are encoded at every size that pictures to learn have, so that a
    batch has both, at one size.

    Args:
        folder: where the files are kept, which belong to one VAE and one way of reading the data.
        sizes: of pictures, (height, width) in px; each row goes to the one nearest in proportions.
        flip: whether each picture is encoded mirrored, too.
        masks: of the pictures to learn.
    """

    def __init__(
        self,
        folder: Path,
        vae: AutoencoderKL,
        data: Pictures,
        sizes: Sequence[Size],
        flip: bool,
        masks: Masks | None = None,
    ) -> None:
        self.folder, self.vae, self.data, self.flip = folder, vae, data, flip
        self.sizes, self.masks = list(sizes), masks

    def prepare(self, accelerator: Accelerator) -> None:
        """Encode every picture, each process its share, unless the files are there.

        What a process that was killed has encoded is kept; damaged files, and those of other
        pictures or another VAE, are made again, with a warning.
        Raises DataError where no training picture can be read, TrainingError for a full disk.
        """
        belongs = self._belongs()
        begun, done = self.folder / "begun.json", self.folder / "latents.json"
        if kept(done) != belongs or not self._is_whole():
            main = accelerator.is_main_process
            if main and (kept(begun) != belongs or not self._is_whole(warn=True)):
                self._warn_of_others(kept(begun) or kept(done), belongs)
                self._create()
                write_json(begun, belongs)
            accelerator.wait_for_everyone()
            for size, rows in self._rows(np.load(self.folder / "bucket.npy")):
                share = rows.tensor_split(accelerator.num_processes)[accelerator.process_index]
                self._encode(size, rows, share, accelerator.device)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_json(done, belongs)
        rows_of = self._rows(np.load(self.folder / "bucket.npy"))
        readable = [np.load(self._file(size, "readable")) for size, _ in rows_of]
        self.groups = training_groups(self.data, rows_of, readable)
        self.files = {group.size: self._open(group.size) for group in self.groups}

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Draw rows, all of one size of pictures; half of them class pictures, if there are any.

        Where there are several sizes, one is drawn first, in proportion to its pictures.
        """
        group, chosen, mirrored = choose(self.groups, count, self.flip, generator)
        places, found = group.places[chosen].numpy(), self.files[group.size]
        encoded = EncodedRows(
            found.latents[places, mirrored.long().numpy()],
            found.crops[places],
            None if found.masks is None else found.masks[places],
        )
        return as_drawn(group, chosen, mirrored, encoded)

    def draw_first(self, count: int, generator: torch.Generator, device: torch.device) -> Drawn:
        """Draw as ``draw`` does, without ``prepare``: only the pictures drawn are encoded.

        The rows are the same, but where pictures cannot be read.
        Raises DataError where none of those drawn can be.
        """
        rows_of = self._rows(assign_sizes(self.data, self.sizes))
        groups = training_groups(
            self.data, rows_of, [np.ones(len(rows), bool) for _, rows in rows_of]
        )
        group, chosen, mirrored = choose(groups, count, self.flip, generator)
        encoder, rows = RowEncoder(self.vae, self.data, self.masks, self.flip), group.rows
        usable = torch.isin(rows[chosen], encoder.readable(rows[chosen].unique(), group.size))
        chosen, mirrored = chosen[usable], mirrored[usable]
        if not len(chosen):
            raise DataError(
                f"none of the pictures of the first batch of {self.data.name} is usable"
            )
        parts = [encoder.encode(rows[i], group.size, device) for i in chosen.split(8)]
        latents = np.concatenate([part.latents for part in parts])
        encoded = EncodedRows(
            latents[np.arange(len(chosen)), mirrored.long().numpy()],
            np.concatenate([part.crops for part in parts]),
            None
            if self.masks is None
            else np.concatenate([part.masks for part in parts if part.masks is not None]),
        )
        return as_drawn(group, chosen, mirrored, encoded)

    def _belongs(self) -> dict[str, object]:
        return {
            "form": FORM,
            "weights": fingerprint(self.vae),
            "data": self.data.name,
            "rows": count_instances(self.data),
            "options": str(self.data.options),
            "sizes": [list(size) for size in self.sizes],
            "flip": self.flip,
            "class_pictures": class_pictures_of(self.data),
        }

    def _warn_of_others(self, before: dict[str, object], belongs: dict[str, object]) -> None:
        """Warn that files are there, but of something else."""
        if before and (other := differences(before, belongs)):
            other = ["form"] if "form" in other else other
            reasons = ", ".join(REASONS[key] for key in other)
            warnings.warn(
                f"the latents in {self.folder} are of {reasons}; they are encoded again",
                stacklevel=3,
            )

    def _is_whole(self, warn: bool = False) -> bool:
        """Whether all files have the shapes that belong to the data; with a warning, if not."""
        try:
            check_array(self.folder / "bucket.npy", Layout(np.int32, (len(self.data),)))
            bucket = map_array(self.folder / "bucket.npy")
            if not ((bucket >= -1) & (bucket < len(self.sizes))).all():
                raise DataError(f"{self.folder / 'bucket.npy'} names a size that there is not")
            for name, layout in self._layouts(bucket).items():
                check_array(self.folder / name, layout)
        except DataError as error:
            if warn:
                warnings.warn(f"{error}; the latents are encoded again", stacklevel=2)
            return False
        return True

    def _layouts(self, bucket: np.ndarray) -> dict[str, Layout]:
        """Return what the files of all sizes hold, by name."""
        channels, scale = self.vae.config.latent_channels, self.vae.config.scale
        found: dict[str, Layout] = {}
        for size, rows in self._rows(bucket):
            n, area = len(rows), (size[0] // scale, size[1] // scale)
            shapes = {
                "latents": Layout(np.float16, (n, 1 + self.flip, channels, *area)),
                "crops": Layout(np.int32, (n, 5)),
                "readable": Layout(np.bool_, (n,)),
            }
            if self.masks is not None:
                shapes["masks"] = Layout(np.float16, (n, 1, *area))
            found |= {self._file(size, kind).name: shape for kind, shape in shapes.items()}
        return found

    def _create(self) -> None:
        """Make the files, still empty: which size each row has, and what is encoded of each."""
        bucket = assign_sizes(self.data, self.sizes)
        names = {"bucket.npy": Layout(np.int32, bucket.shape)} | self._layouts(bucket)
        for note in ("latents.json", "begun.json"):
            (self.folder / note).unlink(missing_ok=True)
        for old in self.folder.glob("*.npy"):  # of other sizes
            old.unlink()
        create_arrays(self.folder, names, f"the latents of {len(bucket)} pictures")
        open_array(self.folder / "bucket.npy")[:] = bucket

    def _rows(self, bucket: np.ndarray) -> list[tuple[Size, Tensor]]:
        return rows_of_sizes(self.data, self.sizes, bucket)

    def _file(self, size: Size, kind: str = "latents") -> Path:
        end = "" if kind == "latents" else f".{kind}"
        return self.folder / f"{size[0]}x{size[1]}{end}.npy"

    def _open(self, size: Size) -> EncodedRows:
        kinds = ["latents", "crops"] + ["masks"] * (self.masks is not None)
        found = [np.load(self._file(size, kind), mmap_mode="r") for kind in kinds]
        return EncodedRows(found[0], found[1], found[2] if self.masks is not None else None)

    def _encode(self, size: Size, rows: Tensor, share: Tensor, device: torch.device) -> None:
        """Fill in what is missing of a share of the rows of one size."""
        kinds = ["latents", "crops", "readable"] + ["masks"] * (self.masks is not None)
        files = {kind: open_array(self._file(size, kind)) for kind in kinds}
        encoder = RowEncoder(self.vae, self.data, self.masks, self.flip)
        parts = share.split(8)  # 32 at once leave the cache: a quarter slower
        for part in counted(parts, f"encoding pictures at {size[0]} x {size[1]} px"):
            if files["readable"][torch.searchsorted(rows, part).numpy()].all():
                continue
            part = encoder.readable(part, size)
            if not len(part):
                continue
            found, places = encoder.encode(part, size, device), torch.searchsorted(rows, part)
            for kind, values in found._asdict().items():
                if values is not None:
                    files[kind][places.numpy()] = values
            files["readable"][places.numpy()] = True
        for file in files.values():
            file.flush()


def as_drawn(group: SizeGroup, chosen: Tensor, mirrored: Tensor, encoded: EncodedRows) -> Drawn:
    """Return rows of a group as a batch has them."""
    masks = None
    if encoded.masks is not None:
        masks = torch.from_numpy(np.asarray(encoded.masks)).float()
        masks = torch.where(mirrored[:, None, None, None], masks.flip(-1), masks)
    return Drawn(
        group.rows[chosen],
        torch.from_numpy(np.asarray(encoded.latents)).float(),
        mirrored,
        time_ids_of(encoded.crops, mirrored, group.size),
        masks,
    )
