"""Training data: the forms of data sets, what is random in a batch, and bad input."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.errors import ArgumentError, DataError
from ldm.training.data import open_data, step_generator
from ldm.training.data.idx import write_idx


def write_mnist(folder: Path, end: str = "", train: int = 30, test: int = 10) -> np.ndarray:
    """Noise and labels in files of MNIST's names; returns all pictures."""
    images = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28), np.uint8)
    labels = np.arange(train + test, dtype=np.uint8) % 10
    for split, part in (("train", slice(train)), ("t10k", slice(train, None))):
        write_idx(folder / f"{split}-images-idx3-ubyte{end}", images[part])
        write_idx(folder / f"{split}-labels-idx1-ubyte{end}", labels[part])
    return images


def write_arrays(folder: Path, **extra: list) -> np.ndarray:
    """Twenty pictures of noise, 24 × 40 px."""
    images = np.random.default_rng(1).integers(0, 256, (20, 24, 40, 3), np.uint8)
    np.save(folder / "images.npy", images)
    rows = [{"split": "train" if i % 5 else "test", "caption": f"picture {i}"} for i in range(20)]
    for key, values in extra.items():
        rows = [row | {key: value} for row, value in zip(rows, values, strict=True)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return images


def test_arrays_are_cropped_as_the_first_trainings_were(tmp_path: Path) -> None:
    """The built-in model's runs: places of all rows, then mirrors, drawn as two randint calls."""
    images = write_arrays(tmp_path)
    data = open_data(str(tmp_path), {"resize": 0, "crop": "random", "flip": True})
    indices = data.draw(16, step_generator(0, 7))
    train = torch.tensor([i for i in range(20) if i % 5])
    chosen = torch.multinomial(torch.ones(16), 16, replacement=True, generator=step_generator(0, 7))
    assert torch.equal(indices, train[chosen])
    x = data.pixels(indices, 16, step_generator(3, 1))
    generator = step_generator(3, 1)
    tops = torch.randint(24 - 16 + 1, (16,), generator=generator).tolist()
    lefts = torch.randint(40 - 16 + 1, (16,), generator=generator).tolist()
    flips = (torch.rand(16, generator=generator) < 0.5).tolist()
    assert any(flips) and not all(flips)
    for row, i in enumerate(indices.tolist()):
        cut = images[i, tops[row] : tops[row] + 16, lefts[row] : lefts[row] + 16]
        cut = cut[:, ::-1] if flips[row] else cut
        expected = torch.from_numpy(cut.copy()).permute(2, 0, 1).float() / 127.5 - 1
        assert torch.equal(x[row], expected)


def test_whole_arrays_their_captions_and_labels(tmp_path: Path) -> None:
    images = write_arrays(tmp_path, label=[["dog", "cat"][i % 2] for i in range(20)])
    data = open_data(str(tmp_path))
    assert data.held_out.tolist() == [0, 5, 10, 15] and len(data.train) == 16
    rows = torch.tensor([7, 2])  # in the order that is asked for
    expected = torch.from_numpy(images[[7, 2]]).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(data.pixels(rows), expected)
    assert data.captions(rows) == ["picture 7", "picture 2"]
    assert data.classes == ["cat", "dog"] and data.labels(rows).tolist() == [0, 1]


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_is_read_padded_and_split_as_its_files_are(tmp_path: Path, end: str) -> None:
    images = write_mnist(tmp_path, end)
    data = open_data(str(tmp_path), {"pad": 32})
    assert data.train.tolist() == list(range(30)) and data.held_out.tolist() == list(range(30, 40))
    x = data.pixels(torch.tensor([3, 35]))
    assert x.shape == (2, 1, 32, 32)
    border = x.clone()
    border[:, :, 2:30, 2:30] = -1
    assert bool((border == -1).all())
    inner = torch.from_numpy(images[[3, 35]]).float()[:, None] / 127.5 - 1
    assert torch.equal(x[:, :, 2:30, 2:30], inner)
    assert data.labels(torch.tensor([3, 35])).tolist() == [3, 5]
    assert data.captions(torch.tensor([3, 35])) == ["three", "five"]
    assert data.classes[7] == "seven"
    assert open_data(str(tmp_path), {"channels": 3}).pixels(torch.tensor([0])).shape[1] == 3


def test_an_idx_file_that_is_not_whole_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    for content, message in (
        (whole[:1000], r"train-images-idx3-ubyte holds 984 values.*30 × 28 × 28 = 23520.*build_mn"),
        (whole[:9], "ends within its header"),
        (b"\0\0\x0d\x03" + whole[4:], "begins with 00 00 0d 03.*begins with 00 00 08 03"),
        (b"", "begins with"),
        (gzip.compress(whole), "begins with 1f 8b"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_data(str(tmp_path))
    file.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-100])
    with pytest.raises(DataError, match=r"ubyte\.gz cannot be read"):
        open_data(str(tmp_path))


def test_idx_labels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "train-labels-idx1-ubyte"
    labels = bytearray(file.read_bytes())
    labels[8 + 4] = 10
    file.write_bytes(labels)
    with pytest.raises(DataError, match=r"row 4: label 10 is not from 0 to 9.*data\.classes"):
        open_data(str(tmp_path))
    file.write_bytes(struct.pack(">II", 0x801, 2) + b"\0\1")
    with pytest.raises(DataError, match="30 pictures but train-labels-idx1-ubyte 2 labels"):
        open_data(str(tmp_path))
    file.unlink()
    with pytest.raises(DataError, match="no train-labels-idx1-ubyte"):
        open_data(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resise": 3}, "data.resise is not an option.*did you mean resize"),
        ({"crop": "center"}, "data.crop is 'center'; expected 'centre' or 'random'"),
        ({"size": 0}, "data.size is 0; it must be a whole number from 1 on"),
        ({"size": 32.0}, "data.size is 32.0"),
        ({"flip": "yes"}, "data.flip is 'yes'"),
        ({"channels": 4}, "data.channels is 4"),
        ({"label": "kind"}, "has no column 'kind'; it has split, caption"),
    ],
)
def test_an_option_that_cannot_work_is_named(tmp_path: Path, options: dict, message: str) -> None:
    write_arrays(tmp_path)
    with pytest.raises(ArgumentError, match=message):
        open_data(str(tmp_path), options)


def test_arrays_that_are_not_pictures_are_named(tmp_path: Path) -> None:
    write_arrays(tmp_path)
    with pytest.raises(DataError, match="has no labels; give"):
        open_data(str(tmp_path)).labels(torch.tensor([0]))
    np.save(tmp_path / "images.npy", np.zeros((20, 4, 4, 3)))
    with pytest.raises(DataError, match=r"holds float64 of shape \(20, 4, 4, 3\)"):
        open_data(str(tmp_path))
    (tmp_path / "images.npy").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"images.npy cannot be read"):
        open_data(str(tmp_path))
    with pytest.raises(ArgumentError, match="nowhere does not exist"):
        open_data("nowhere")
