"""Folders of pictures as other programs have them: sd-scripts, imagefolder, Windows, links."""

from __future__ import annotations

import builtins
import csv
import io
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from ldm.errors import ArgumentError, DataError
from ldm.training.data import open_data, step_generator
from ldm.training.data.pictures import Pictures
from ldm.training.data.reading import suffixes

OPTIONS = {"size": 8}


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, 0, 0)).save(path)
    return path


def opened(folder: Path, **options: object) -> Pictures:
    """Open a set of which nothing is to be warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = open_data(str(folder), OPTIONS | options)
    assert isinstance(data, Pictures)
    return data


def captions(data: Pictures) -> dict[str, str]:
    texts = data.captions(torch.arange(len(data)))
    return {file.name: text for file, text in zip(data.files, texts, strict=True)}


def trained_and_held_out(data: Pictures) -> tuple[set[Path], set[Path]]:
    """The real files of both."""
    parts = data.train.tolist(), data.held_out.tolist()
    trained, kept = ({data.files[i].resolve() for i in part} for part in parts)
    return trained, kept


# --- sd-scripts ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".txt", ".caption", ".TXT", ".png.txt"])
def test_kohya_folders(tmp_path: Path, end: str) -> None:
    """Captions from files, else the folder's; pictures count as often as the folder says."""
    for folder, value in (("10_sks dog", 200), ("1_dog", 50)):
        for i in range(4):
            file = picture(tmp_path / folder / f"{value}{i}.png", value)
            if i:
                file.with_name(f"{file.stem}{end}").write_text(f"a photo, number {i}\n")
    data = opened(tmp_path)
    found = captions(data)
    assert found["2000.png"] == "sks dog" and found["500.png"] == "dog"
    assert found["2001.png"] == found["501.png"] == "a photo, number 1"
    assert sorted(data.classes) == ["dog", "sks dog"]
    batch = data.batch(0, 4000, step_generator(0, 0))
    bright = (batch.pixels[:, 0].mean((1, 2)) > 0).float().mean()
    assert abs(bright - 10 / 11) < 0.03
    one = captions(opened(tmp_path / "1_dog"))
    assert one["500.png"] == "dog" and one["501.png"] == "a photo, number 1"


def test_kohya_folders_below_one_more(tmp_path: Path) -> None:
    """kohya's own GUI has them in img/; without files, each picture is its folder's concept."""
    for name in ("img/5_red car", "img/1_car"):
        picture(tmp_path / name / "0.png")
    data = opened(tmp_path)
    assert data.captions(torch.arange(2)) == ["car", "red car"]
    assert data.weights.tolist() == [1, 5]
    picture(tmp_path / "img" / "0_unused" / "1.png")
    picture(tmp_path / "loose.png")
    with pytest.warns(UserWarning, match=r"2 pictures are left out.*10_dog.*such as img/0_unused"):
        assert len(open_data(str(tmp_path), OPTIONS)) == 2


def test_numbered_folders_that_are_no_repeats(tmp_path: Path) -> None:
    """Classes counted from 0, and years."""
    for i, name in enumerate(("plane", "car", "bird")):
        picture(tmp_path / "classes" / f"{i}_{name}" / "0.png")
    data = opened(tmp_path / "classes")
    assert data.classes == ["0_plane", "1_car", "2_bird"] and data.weights.tolist() == [1, 1, 1]
    for name in ("2023_holiday", "2024_party"):
        picture(tmp_path / "years" / name / "0.png")
    data = opened(tmp_path / "years")
    assert data.classes == ["2023_holiday", "2024_party"] and data.weights.tolist() == [1, 1]


def test_classes_with_captions(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / name / "0.png").with_suffix(".txt").write_text(f"one {name}")
    data = opened(tmp_path)
    assert data.labels(torch.arange(2)).tolist() == [0, 1] and data.classes == ["cat", "dog"]
    assert data.captions(torch.arange(2)) == ["one cat", "one dog"]


# --- caption files ---------------------------------------------------------------------------


def test_caption_files_of_editors_on_windows(tmp_path: Path) -> None:
    texts = {"a": "été".encode("utf-8-sig"), "b": "été\r\n".encode("utf-16"), "c": b"\n  plain \n"}
    for name, content in texts.items():
        picture(tmp_path / f"{name}.png").with_suffix(".txt").write_bytes(content)
    (tmp_path / "readme.txt").write_text("no caption")
    assert captions(opened(tmp_path)) == {"a.png": "été", "b.png": "été", "c.png": "plain"}
    (tmp_path / "a.txt").write_text("first\n\nsecond\n")
    with pytest.warns(UserWarning, match=r"1 caption files have several lines.*such as .*a\.txt"):
        assert captions(open_data(str(tmp_path), OPTIONS))["a.png"] == "first"
    (tmp_path / "a.txt").write_bytes("été".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8 text.*save it as UTF-8"):
        open_data(str(tmp_path))
    (tmp_path / "a.txt").write_bytes(bytes(2_000_000))
    with pytest.raises(DataError, match=r"a\.txt is larger than a caption"):
        open_data(str(tmp_path))
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").unlink()
    with pytest.warns(UserWarning, match=r"2 of 3 rows .* have no caption \(first: .*a\.png"):
        assert captions(open_data(str(tmp_path), OPTIONS))["b.png"] == ""


# --- metadata --------------------------------------------------------------------------------


def write_csv(path: Path, rows: list[dict[str, object]], delimiter: str = ",") -> Path:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(out.getvalue().encode("utf-8-sig"))
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_metadata_csv(tmp_path: Path, delimiter: str) -> None:
    """It counts above class folders and caption files; captions may be numbers."""
    texts = ['a, "quoted"; cat', "two\nlines", "3", ""]
    rows: list[dict[str, object]] = []
    for i, text in enumerate(texts):
        file = picture(tmp_path / f"{i % 2}_class" / f"{i}.png")
        rows.append({"file_name": f"{i % 2}_class/{i}.png", "text": text, "label": i % 2})
    file.with_suffix(".txt").write_text("from beside")
    write_csv(tmp_path / "metadata.csv", rows, delimiter)
    data = opened(tmp_path)
    assert [captions(data)[f"{i}.png"] for i in range(4)] == [*texts[:3], "from beside"]
    assert data.labels(torch.arange(4)).tolist() == [0, 1, 0, 1]
    (tmp_path / "metadata.csv").write_text("file_name,text\n0_class/0.png,a cat, sitting\n")
    with pytest.raises(ArgumentError, match=r"row 0 has 3 values under 2 names; put texts with"):
        open_data(str(tmp_path))
    (tmp_path / "metadata.csv").write_text('file_name,text\n0_class/0.png,"open\n')
    with pytest.raises(ArgumentError, match=r"metadata\.csv cannot be read .*check its quotes"):
        open_data(str(tmp_path))
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(DataError, match=r"metadata\.csv has no rows"):
        open_data(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "name",
    [
        r"img\é.png",
        "./img/é.png",
        r"C:\Users\me\set\img\é.png",
        r"\\server\share\set\img\é.png",
        "/home/me/set/img/é.png",
        "{here}/img/é.png",
    ],
)
def test_names_of_pictures_in_metadata(tmp_path: Path, encoding: str, name: str) -> None:
    picture(tmp_path / "img" / "é.png")
    row = {"file_name": name.format(here=tmp_path), "text": "été\u2028."}
    text = json.dumps(row, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(text + "\n", encoding=encoding)
    data = opened(tmp_path)
    assert captions(data) == {"é.png": "été\u2028."}
    assert data.pixels(torch.arange(1)).shape == (1, 3, 8, 8)


def test_pictures_elsewhere_and_names_that_are_unclear(tmp_path: Path) -> None:
    outside = picture(tmp_path / "elsewhere" / "a.png", 255)
    folder = tmp_path / "set"
    picture(folder / "b.png")
    rows = [{"path": str(outside), "text": "a"}, {"path": "../elsewhere/a.png", "text": "c"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.warns(UserWarning, match="no row for 1 pictures"):
        data = open_data(str(folder), OPTIONS)
    assert data.pixels(torch.arange(2)).shape == (2, 3, 8, 8)
    rows = [{"path": "/x/b.png", "text": "a"}, {"path": "/y/b.png", "text": "b"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"names /x/b\.png and /y/b\.png, which could both be b"):
        open_data(str(folder))


def test_metadata_in_subfolders_and_two_of_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        picture(tmp_path / "train" / name / "0.png")
        rows: list[dict[str, object]] = [{"file_name": "0.png", "text": name}]
        write_csv(tmp_path / "train" / name / "metadata.csv", rows)
    assert opened(tmp_path).captions(torch.arange(2)) == ["one", "two"]
    line = json.dumps({"file_name": "one/0.png", "text": "above"})
    (tmp_path / "train" / "metadata.jsonl").write_text(line)
    (tmp_path / "test").mkdir()
    picture(tmp_path / "test" / "0.png").with_suffix(".txt").write_text("held out")
    with pytest.warns(UserWarning, match="no row for 1 pictures"):
        data = open_data(str(tmp_path), OPTIONS)
    assert data.captions(torch.arange(2)) == ["above", "held out"]
    line = json.dumps({"file_name": "0.png", "text": "json"})
    (tmp_path / "train" / "one" / "metadata.jsonl").write_text(line)
    with pytest.warns(UserWarning, match=r"has metadata\.jsonl and metadata\.csv; metadata\.jsonl"):
        assert captions(open_data(str(tmp_path / "train" / "one"), OPTIONS)) == {"0.png": "json"}


def test_damaged_metadata_raises_nothing_else(tmp_path: Path) -> None:
    """Any change of a few bytes is read or refused with a name."""
    rows: list[dict[str, object]] = []
    for i in range(4):
        picture(tmp_path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f'é "{i}", a', "label": i})
    whole = write_csv(tmp_path / "metadata.csv", rows).read_bytes()
    lines = "\n".join(map(json.dumps, rows)).encode()
    rng = np.random.default_rng(0)
    refused = 0
    for name, content in (("metadata.csv", whole), ("metadata.jsonl", lines)):
        for _ in range(300):
            changed = bytearray(content)
            for place in rng.integers(0, len(changed), rng.integers(1, 4)):
                changed[place] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(changed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    open_data(str(tmp_path), OPTIONS)
                except (ArgumentError, DataError) as error:
                    assert str(tmp_path) in str(error)
                    refused += 1
    assert refused > 100
    (tmp_path / "metadata.jsonl").write_text("[" * 100_000)
    with pytest.raises(ArgumentError, match="is not JSON lines"):
        open_data(str(tmp_path))


# --- links -----------------------------------------------------------------------------------


def test_links_that_loop_end(tmp_path: Path) -> None:
    """To itself, to the folder above, and many to each other, whose paths would be millions."""
    for i in range(10):
        picture(tmp_path / f"f{i}" / f"{i}.png")
    for i in range(10):
        for k in range(10):
            (tmp_path / f"f{i}" / f"to{k}").symlink_to(f"../f{k}")
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "f0" / "above").symlink_to("..")
    with pytest.warns(UserWarning, match="links to folders that are read already are left out"):
        data = open_data(str(tmp_path), OPTIONS | {"held_out": 3})
    assert sorted(file.name for file in data.files) == [f"{i}.png" for i in range(10)]
    trained, kept = trained_and_held_out(data)
    assert len(kept) == 3 and not trained & kept


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "in").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "broken").symlink_to(tmp_path / "missing")
    assert [file.name for file in opened(tmp_path / "set").files] == ["a.png"]


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_picture_of_two_names_is_held_out_under_both(tmp_path: Path, link: str) -> None:
    for i in range(10):
        file = picture(tmp_path / "a" / f"{i}.png", i)
        (tmp_path / "b").mkdir(exist_ok=True)
        getattr(tmp_path / "b" / f"{9 - i}.png", link)(file)
    data = opened(tmp_path, held_out=3)
    assert len(data) == 20 and len(data.held_out) == 6 and len(data.train) == 14
    values = [{Image.open(data.files[i]).getpixel((0, 0)) for i in rows.tolist()}
              for rows in (data.train, data.held_out)]  # fmt: skip
    assert not values[0] & values[1] and len(values[1]) == 3


def test_a_held_out_folder_linked_into_training_is_not_trained_on(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / ("test" if i > 3 else "train") / f"{i}.png")
    (tmp_path / "train" / "more").symlink_to("../test")
    (tmp_path / "train" / "z.png").symlink_to("../test/5.png")
    with pytest.warns(UserWarning, match="left out: train/more"):
        data = open_data(str(tmp_path), OPTIONS)
    trained, kept = trained_and_held_out(data)
    assert {file.name for file in kept} == {"4.png", "5.png"}
    assert {file.name for file in trained} == {"0.png", "1.png", "2.png", "3.png"}


def test_rows_of_one_picture_are_held_out_together(tmp_path: Path) -> None:
    """Five captions for each picture; a share of the pictures is held out, not of the rows."""
    for i in range(40):
        picture(tmp_path / f"{i}.png")
    rows = [{"file_name": f"{i}.png", "text": f"{i} {k}"} for k in range(5) for i in range(40)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = opened(tmp_path)
    assert len(data.held_out) == 10 and len(data.train) == 190
    trained, kept = trained_and_held_out(data)
    assert len(kept) == 2 and not trained & kept


# --- formats ---------------------------------------------------------------------------------


def test_formats_that_pillow_reads_and_those_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg = picture(tmp_path / "a.jpg", 90).read_bytes()
    for name in ("b.jfif", "c.JPE", "d.pjpeg"):
        (tmp_path / name).write_bytes(jpeg)
    data = opened(tmp_path)
    assert len(data) == 4 and len(data.readable(torch.arange(4))) == 4
    for name in ("e.nef", "f.psd", "g.HEIC"):
        (tmp_path / name).write_bytes(jpeg)
    suffixes.cache_clear()
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "pillow_heif":
            raise ImportError
        return real(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        patch.setattr(
            Image, "EXTENSION", {k: v for k, v in Image.EXTENSION.items() if k[:4] != ".hei"}
        )
        with pytest.warns(UserWarning, match=r"3 files of \.heic, \.nef, \.psd are left out"):
            assert len(open_data(str(tmp_path), OPTIONS)) == 4
    suffixes.cache_clear()


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif(tmp_path: Path) -> None:
    picture(tmp_path / "a.avif", 200)
    assert opened(tmp_path).pixels(torch.arange(1)).shape == (1, 3, 8, 8)


def test_heic(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    suffixes.cache_clear()
    assert ".heic" in suffixes()
    picture(tmp_path / "a.heic", 200)
    assert opened(tmp_path).pixels(torch.arange(1)).shape == (1, 3, 8, 8)


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "secret").mkdir(mode=0)
    with pytest.warns(UserWarning, match=r"secret is left out: it cannot be read"):
        assert len(open_data(str(tmp_path), OPTIONS)) == 1
