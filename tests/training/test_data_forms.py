"""Folders of pictures, parquet, shards and streams: each form gives the same rows; bad input."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import ArgumentError, DataError, ImageError
from ldm.training.data import open_data, step_generator
from ldm.training.data.reading import Cache

COUNT = 12
CLASSES = ("bird", "cat")
ROWS = torch.tensor([10, 3, 5])


def photo(i: int) -> Image.Image:
    """A picture whose sides and colours depend on its number: 20 to 31 × 26 px."""
    rng = np.random.default_rng(i)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return small.resize((20 + i, 26), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_described(folder: Path) -> str:
    (folder / "in").mkdir()
    rows = []
    for i in range(COUNT):
        photo(i).save(folder / "in" / f"{i:02d}.png")
        rows.append({"file_name": f"./in/{i:02d}.png", "text": f"no {i}", "label": CLASSES[i % 2]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def write_parquet(folder: Path) -> str:
    import datasets

    features = datasets.Features(
        image=datasets.Image(),
        caption=datasets.Value("string"),
        label=datasets.ClassLabel(names=list(CLASSES)),
    )
    table = {"image": [{"bytes": png(photo(i)), "path": None} for i in range(COUNT)]}
    table |= {"caption": [f"no {i}" for i in range(COUNT)]}
    table |= {"label": [i % 2 for i in range(COUNT)]}
    made = datasets.Dataset.from_dict(table, features=features)
    made.to_parquet(str(folder / "set.parquet"))
    return str(folder / "set.parquet")


def write_shards(folder: Path) -> str:
    """Three shards of four rows: a picture with a caption and a label, in either way."""
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(4 * shard, 4 * shard + 4):
                parts = {"png": png(photo(i))}
                if i % 2:
                    parts |= {"txt": f"no {i}".encode(), "cls": b"1"}
                else:
                    parts["json"] = json.dumps({"caption": f"no {i}", "label": 0}).encode()
                for end, content in parts.items():
                    info = tarfile.TarInfo(f"{i:03d}.{end}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("write", [write_described, write_parquet, write_shards])
def test_every_form_gives_the_same_rows(tmp_path: Path, write: Callable[[Path], str]) -> None:
    (tmp_path / "set").mkdir()
    options = {"size": 16, "classes": list(CLASSES), "held_out": 2, "crop": "random", "flip": True}
    data = open_data(write(tmp_path / "set"), options)
    assert data.captions(ROWS) == ["no 10", "no 3", "no 5"]
    assert data.labels(ROWS).tolist() == [0, 1, 1] and data.classes == list(CLASSES)
    assert data.held_out.tolist() == [0, 11] and data.train.tolist() == list(range(1, 11))
    x = data.pixels(ROWS)
    for row, i in enumerate(ROWS.tolist()):
        # 26 px high: the shorter side becomes 16, then the middle of the longer is taken.
        image = photo(i)
        w, h = image.size
        scale = 16 / min(w, h)
        image = image.resize(
            (max(round(w * scale), 16), max(round(h * scale), 16)), Image.Resampling.LANCZOS
        )
        left, top = (image.width - 16) // 2, (image.height - 16) // 2
        expected = np.asarray(image)[top : top + 16, left : left + 16]
        assert np.array_equal(((x[row] + 1) * 127.5).round().permute(1, 2, 0).numpy(), expected)
    batch = data.batch(4, 6, step_generator(0, 4))
    again = open_data(data.name, options).batch(4, 6, step_generator(0, 4))
    assert torch.equal(batch.pixels, again.pixels) and batch.captions == again.captions
    assert batch.labels.tolist() == [int(text.split()[1]) % 2 for text in batch.captions]
    assert not torch.equal(batch.pixels, data.batch(5, 6, step_generator(0, 5)).pixels)


def test_a_folder_of_classes_and_one_without_labels(tmp_path: Path) -> None:
    for i in range(6):
        folder = tmp_path / CLASSES[i % 2] / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        photo(i).save(folder / f"{i}.jpg")
    data = open_data(str(tmp_path), {"size": 8, "held_out": 1})
    assert data.classes == ["bird", "cat"]
    assert data.labels(torch.arange(6)).tolist() == [0, 0, 0, 1, 1, 1]
    assert data.captions(torch.tensor([5])) == ["cat"]
    photo(9).save(tmp_path / "9.png")
    data = open_data(str(tmp_path), {"size": 8})
    assert data.classes == [] and len(data) == 7
    with pytest.raises(DataError, match="has no labels"):
        data.labels(ROWS)
    with pytest.raises(DataError, match=r"no captions; give it a metadata\.jsonl"):
        data.captions(ROWS)


def test_folders_of_splits(tmp_path: Path) -> None:
    for i in range(8):
        folder = tmp_path / ("test" if i > 5 else "train") / CLASSES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        photo(i).save(folder / f"{i}.png")
    data = open_data(str(tmp_path), {"size": 8})
    assert data.labels(data.train).tolist() == [0, 0, 0, 1, 1, 1]
    assert data.labels(data.held_out).tolist() == [0, 1] and data.classes == ["bird", "cat"]


def test_corrupt_pictures_are_skipped_and_told_of(tmp_path: Path) -> None:
    name = write_described(tmp_path)
    whole = (tmp_path / "in" / "04.png").read_bytes()
    (tmp_path / "in" / "04.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "05.png").write_bytes(b"no picture")
    (tmp_path / "in" / "06.png").write_bytes(b"")
    data = open_data(name, {"size": 8, "held_out": 0})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(30):
            batch = data.batch(step, 8, step_generator(0, step))
            assert not {"no 4", "no 5", "no 6"} & set(batch.captions)
            assert batch.labels.tolist() == [int(t.split()[1]) % 2 for t in batch.captions]
    assert len(told) == 3 == len(data.skipped)  # once each
    text = " ".join(str(warning.message) for warning in told)
    assert "04.png: cannot read" in text and "05.png is not a picture" in text
    assert "3 pictures skipped (" in str(data.skipped) and "06.png" in str(data.skipped)
    # The next readable row stands in: rows 4, 5 and 6 became row 7.
    assert data.usable(torch.tensor([3, 4, 6])).tolist() == [3, 7, 7]
    assert data.readable(torch.arange(12)).tolist() == [0, 1, 2, 3, 7, 8, 9, 10, 11]
    with pytest.raises(ImageError, match=r"05\.png"):
        data.pixels(torch.tensor([5]))


@pytest.mark.filterwarnings("ignore:skipped")
def test_all_corrupt_and_none_at_all_are_fatal(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no pictures \(files of png, jpg"):
        open_data(str(tmp_path))
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no")
    data = open_data(str(tmp_path), {"size": 8})
    with pytest.raises(
        DataError, match=r"none of the 4 training pictures.*[0-3]\.png is not a pict"
    ):
        data.draw(2, step_generator(0, 0))


def test_one_picture_is_enough(tmp_path: Path) -> None:
    photo(0).save(tmp_path / "only.png")
    data = open_data(str(tmp_path), {"size": 16, "flip": True})
    assert data.batch(0, 5, step_generator(0, 0)).pixels.shape == (5, 3, 16, 16)
    assert len(data.held_out) == 0


def test_small_pictures_are_enlarged_or_skipped(tmp_path: Path) -> None:
    name = write_described(tmp_path)  # 26 px high; rows 0 to 5 are narrower
    data = open_data(name, {"size": 26, "resize": 0, "small": "skip", "held_out": 0})
    with pytest.warns(UserWarning) as told:
        assert data.readable(torch.arange(12)).tolist() == [6, 7, 8, 9, 10, 11]
    assert "00.png has 20 × 26 px, below the crop of 26 × 26" in str(told[0].message)
    data = open_data(name, {"size": 64, "resize": 0, "held_out": 0})
    assert data.pixels(torch.tensor([0, 11])).shape == (2, 3, 64, 64)
    with pytest.raises(ArgumentError, match=r"several sizes, such as 2[0-9] × 26.*set data\.size"):
        open_data(name).pixels(torch.tensor([0, 11]))


def test_metadata_that_does_not_fit_is_named(tmp_path: Path) -> None:
    name = write_described(tmp_path)
    file = tmp_path / "metadata.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line.replace("in/03", "in/nowhere") for line in lines))
    with pytest.warns(UserWarning) as told:
        data = open_data(name, {"size": 8})
    text = " ".join(str(warning.message) for warning in told)
    assert "names 1 pictures that are not there, skipped: ./in/nowhere.png" in text
    assert "has no row for 1 pictures" in text and len(data) == 11
    file.write_text("\n".join(line.replace("in/", "out/") for line in lines))
    with pytest.raises(DataError, match=r"names no picture that is there \(12 rows"):
        open_data(name)
    file.write_text("\n".join(lines).replace('"text": "no 2", ', ""))
    with pytest.warns(UserWarning, match=r"1 of 12 rows.*no caption \(first: .*02.png\)"):
        data = open_data(name, {"size": 8})
    assert data.captions(torch.tensor([2, 3])) == ["", "no 3"]
    for change, message in (
        (('"label": "cat"', '"label": "cow"'), "label 'cow' is not one of the classes bird, cat"),
        (('"label": "cat"', '"label": null'), "row 1: the label is None"),
        (('"label": "cat"', '"label": 1.5'), "row 1: the label is 1.5"),
        (('"file_name"', '"name"'), "row 0 has no file_name"),
        (('"no 7"', "7"), "row 7: the caption is 7; expected text"),
    ):
        file.write_text("\n".join(lines).replace(*change))
        with pytest.raises(DataError, match=message):
            open_data(name, {"classes": list(CLASSES)})
    file.write_text("{broken\n")
    with pytest.raises(ArgumentError, match=r"metadata\.jsonl is not JSON lines"):
        open_data(name)


def test_tables_with_splits_and_columns_of_other_names(tmp_path: Path) -> None:
    import datasets

    def split(rows: range) -> datasets.Dataset:
        table = {"photo": [{"bytes": png(photo(i)), "path": None} for i in rows]}
        table["what"] = [f"no {i}" for i in rows]
        return datasets.Dataset.from_dict(table)  # no feature says that photo is a picture

    saved = datasets.DatasetDict(train=split(range(8)), test=split(range(8, 10)))
    saved.save_to_disk(str(tmp_path / "saved"))
    name, options = str(tmp_path / "saved"), {"image": "photo", "text": "what", "size": 8}
    data = open_data(name, options)
    assert data.held_out.tolist() == [8, 9] and data.captions(data.held_out) == ["no 8", "no 9"]
    assert data.pixels(data.held_out).shape == (2, 3, 8, 8)
    assert open_data(name, options | {"held_out": 1}).train.shape == (7,)
    with pytest.raises(
        ArgumentError, match=r"no column of pictures among photo, what; set data\.im"
    ):
        open_data(name, {"text": "what"})
    with pytest.raises(
        ArgumentError, match=r"no split 'all'; set data\.split to one of train, test"
    ):
        open_data(name, options | {"split": "all"})
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match=r"datasets cannot load .*bad\.parquet: "):
        open_data(str(tmp_path / "bad.parquet"))


def test_without_datasets_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what needs it not works without."""
    name = write_described(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(open_data(name)) == COUNT
    with pytest.raises(ArgumentError, match=r'pip install "ldm\[train\]"'):
        open_data("hub:user/set")


@pytest.mark.parametrize("write", [write_parquet, write_shards])
def test_a_stream_gives_each_row_once_an_epoch_and_resumes(
    tmp_path: Path, write: Callable[[Path], str]
) -> None:
    (tmp_path / "set").mkdir()
    name = write(tmp_path / "set")
    options = {"size": 16, "streaming": True, "buffer": 4, "held_out": 2, "flip": True}
    data = open_data(name, options)
    kept = data.captions(data.held_out)
    assert len(kept) == 2 and data.pixels(data.held_out).shape == (2, 3, 16, 16)
    batches = [data.batch(step, 5, step_generator(0, step)) for step in range(6)]  # three epochs
    texts = [text for batch in batches for text in batch.captions]
    everything = sorted({f"no {i}" for i in range(COUNT)} - set(kept))
    for epoch in range(3):
        assert sorted(texts[10 * epoch : 10 * epoch + 10]) == everything
    assert texts[:10] != texts[10:20] != everything  # shuffled, in each epoch otherwise
    for step in (5, 0, 3):  # where a run may go on
        batch = open_data(name, options).batch(step, 5, step_generator(0, step))
        assert batch.captions == batches[step].captions
        assert torch.equal(batch.pixels, batches[step].pixels)
        assert batch.labels.tolist() == [int(t.split()[1]) % 2 for t in batch.captions]
    with pytest.raises(ArgumentError, match=r"leave data\.streaming out"):
        data.draw(1, step_generator(0, 0))


def test_bad_shards_are_named(tmp_path: Path) -> None:
    name = write_shards(tmp_path)
    whole = (tmp_path / "1.tar").read_bytes()
    place = whole.index(b"\x89PNG")
    (tmp_path / "1.tar").write_bytes(whole[:place] + b"spoilt" + whole[place + 6 :])
    for streaming in (False, True):
        data = open_data(name, {"size": 8, "held_out": 0, "streaming": streaming})
        with pytest.warns(UserWarning, match="1.tar/004 is not a picture"):
            for step in range(20):
                assert "no 4" not in data.batch(step, 4, step_generator(0, step)).captions
    (tmp_path / "1.tar").write_bytes(whole[: place + 50])
    with pytest.raises(DataError, match=r"1.tar.*(cut off|cannot be read)"):
        open_data(name)
    (tmp_path / "1.tar").write_bytes(b"nothing like a shard" * 100)
    with pytest.raises(DataError, match=r"1.tar cannot be read .*get it again"):
        open_data(name)
    with pytest.raises(ArgumentError, match="cannot be streamed"):
        open_data(write_folder(tmp_path), {"streaming": True})


def write_folder(tmp_path: Path) -> str:
    (tmp_path / "folder").mkdir()
    photo(0).save(tmp_path / "folder" / "0.png")
    return str(tmp_path / "folder")


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = Cache(1)
    part = np.zeros(400_000, np.uint8)
    cache.put("a", part)
    cache.put("b", part)
    assert cache.get("a") is part
    cache.put("c", part)  # b is the one not used
    assert cache.get("b") is None and cache.get("a") is part and cache.get("c") is part
    cache.put("huge", np.zeros(2_000_000, np.uint8))
    assert cache.get("huge") is None and cache.get("a") is part
