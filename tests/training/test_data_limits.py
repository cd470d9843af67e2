"""Training data of the worst kind: time grows with its size, memory has limits, nothing waits."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import re
import socket
import struct
import tarfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import ArgumentError, DataError, ImageError, LDMError
from ldm.training.config import read_config
from ldm.training.data import EmbeddedTexts, open_data
from ldm.training.data.idx import write_idx
from ldm.training.data.labels import MOST_CLASSES
from ldm.training.data.metadata import read_rows
from ldm.training.data.reading import decode_picture, stored_size
from ldm.training.foreign import MOST_LINE
from tests.fuzz.gate import limits
from tests.fuzz.readers.data import CONFIG, array, encoded, json_lines, pictures
from tests.helpers.timing import check_linear
from tests.training.test_data_tar import header

OPTIONS = {"size": 4}
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("has no row for", "are no files")
]
FLOOR = 2.0  # seconds below which nothing is measured


# --- Labels ----------------------------------------------------------------------------------


def described(folder: Path, label: object) -> str:
    pictures(folder)
    rows = [{"file_name": f"{i}.png", "label": i} for i in range(2)]
    text = json_lines(rows) + b'\n{"file_name": "2.png", "label": ' + str(label).encode() + b"}"
    (folder / "metadata.jsonl").write_bytes(text)
    return str(folder)


def in_csv(folder: Path, label: object) -> str:
    pictures(folder)
    (folder / "metadata.csv").write_text(f"file_name,label\n0.png,0\n1.png,{label}\n")
    return str(folder)


def in_tar(folder: Path, label: object, end: str = "json") -> str:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i in range(2):
            text = f"{label if i else 0}"
            content = {"png": encoded("PNG"), end: text.encode()}
            if end == "json":
                content["json"] = b'{"label": %s}' % text.encode()
            for kind, part in content.items():
                info = tarfile.TarInfo(f"{i}.{kind}")
                info.size = len(part)
                tar.addfile(info, io.BytesIO(part))
    return str(folder / "a.tar")


def in_cls(folder: Path, label: object) -> str:
    return in_tar(folder, label, "cls")


def in_parquet(folder: Path, label: object) -> str:
    import pyarrow
    from pyarrow import parquet

    image = [{"bytes": encoded("PNG"), "path": None}] * 2
    table = pyarrow.table({"image": image, "label": [0, label]})
    parquet.write_table(table, folder / "a.parquet")
    return str(folder / "a.parquet")


@pytest.mark.parametrize("form", [described, in_csv, in_tar, in_cls, in_parquet])
@pytest.mark.parametrize("label", [10**9, -1, 2**62])
def test_a_label_beyond_all_classes(
    tmp_path: Path, form: Callable[[Path, object], str], label: int
) -> None:
    """It would make a name for each number below."""
    name = form(tmp_path, label)
    with limits(10, 1 << 30), pytest.raises(DataError, match=f"{label} is not from 0 to 1048575"):
        open_data(name, OPTIONS)


@pytest.mark.parametrize(
    "label", ["true", "1.5", "NaN", "[1]", "{}", "null", "1e400", "10" * 5000, "1" * 400, '"a"']
)
@pytest.mark.parametrize("form", [described, in_tar])
def test_a_label_that_is_none(
    tmp_path: Path, form: Callable[[Path, object], str], label: str
) -> None:
    with pytest.raises(LDMError) as refused:
        open_data(form(tmp_path, label), OPTIONS)
    assert str(tmp_path) in str(refused.value) and len(str(refused.value)) < 500


def test_more_names_than_classes_may_be(tmp_path: Path) -> None:
    from ldm.training.data.labels import number_labels

    names = [str(i) for i in range(MOST_CLASSES + 1)]
    with pytest.raises(DataError, match="1,048,577 different labels; at most 1,048,576 work"):
        number_labels("a", names, ())
    numbers, classes = number_labels("a", list(range(1000)), ())
    assert numbers is not None and len(classes) == 1000


# --- Sizes that are claimed ------------------------------------------------------------------


def test_a_header_of_idx_is_checked_before_its_values(tmp_path: Path) -> None:
    """A file of 50 KB that becomes 50 MB: no more is unpacked than the header says."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(2, np.uint8))
    magic = bytes([0, 0, 8, 3])

    def holds(*shape: int, more: int = 0) -> str:
        path.write_bytes(gzip.compress(magic + struct.pack(">3I", *shape) + bytes(more)))
        with limits(5, 1 << 28), pytest.raises(DataError) as refused:
            open_data(str(tmp_path), OPTIONS)
        return str(refused.value)

    assert "3211264000; expected 1 to 1,073,741,824 values" in holds(4096000, 28, 28)
    assert "holds more than that values" in holds(1, 28, 28, more=50_000_000)
    assert "holds 5 values" in holds(1, 4, 4, more=5)
    assert "= 0; expected" in holds(2**32 - 1, 0, 0)
    assert re.search(
        r"holds \d+ values, but its header says .* = 1000000000", holds(10**6, 10, 100)
    )


def test_a_picture_that_would_take_all_memory(tmp_path: Path) -> None:
    """A .png of 160 megapixels in 200 KB, which Pillow only warns of."""
    side = 12_700
    rows = zlib.compress(bytes((side + 1) * side), 1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        sum_of = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + sum_of

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0))
    content += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (
            lambda: decode_picture(content, "a.png", 3),
            lambda: stored_size(content, "a"),
        ):
            with limits(5, 1 << 28), pytest.raises(ImageError, match="more than 89 megapixels"):
                read()


def test_no_program_is_started_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under the name of a picture, which Pillow gives to Ghostscript."""
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: 1 / 0)
    with pytest.raises(ImageError, match=r"a\.png is not a picture"):
        decode_picture(out.getvalue(), "a.png", 3)


def test_parquet_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    def refused(**columns: object) -> str:
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", compression="zstd")
        with limits(10, 1 << 30), pytest.raises(DataError) as error:
            open_data(str(tmp_path / "a.parquet"), OPTIONS)
        return str(error.value)

    many = pyarrow.nulls(3_000_000, pyarrow.binary())
    assert "claims 3,000,000 rows in" in refused(image=many)
    random = np.random.default_rng(0).bytes(1_000_000)
    one = pyarrow.DictionaryArray.from_arrays(np.zeros(5000, np.int32), [random])
    assert "column 'image' has more than" in refused(image=one)


def test_a_type_of_column_with_too_many_classes(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    features = {"label": {"num_classes": 10**9, "_type": "ClassLabel"}}
    info = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pyarrow.table({"label": [0]}).replace_schema_metadata(info)
    parquet.write_table(table, tmp_path / "a.parquet")
    with limits(5, 1 << 28), pytest.raises(DataError, match="num_classes is 1000000000; at most"):
        open_data(str(tmp_path / "a.parquet"), OPTIONS)


# --- What is no file -------------------------------------------------------------------------


@pytest.fixture
def odd_file(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """Make a thing that would block its reader, or never end."""

    def make(path: Path) -> str:
        if request.param == "pipe":
            os.mkfifo(path)
            return "a pipe"
        if request.param == "socket":
            before = Path.cwd()
            os.chdir(path.parent)  # a socket's name has at most 107 characters
            try:
                with socket.socket(socket.AF_UNIX) as one:
                    one.bind(path.name)
            finally:
                os.chdir(before)
            return "a socket"
        path.symlink_to("/dev/zero")
        return "a device"

    return make


ODD = pytest.mark.parametrize("odd_file", ["pipe", "socket", "device"], indirect=True)


@ODD
@pytest.mark.parametrize("name", ["4.png", "0.txt", "metadata.jsonl", "sub/metadata.csv"])
def test_what_is_no_file_among_pictures_is_left_out(
    tmp_path: Path, odd_file: Callable[[Path], str], name: str
) -> None:
    pictures(tmp_path)
    (tmp_path / "sub").mkdir()
    kind = odd_file(tmp_path / name)
    with limits(5), pytest.warns(UserWarning, match=f"left out: {name}, {kind}"):
        data = open_data(str(tmp_path), OPTIONS)
    assert len(data.train) == 6


@ODD
@pytest.mark.parametrize(
    "name", ["a.tar", "a.parquet", "images.npy", "train-images-idx3-ubyte", "a.toml", ""]
)
def test_what_is_no_file_is_refused(
    tmp_path: Path, odd_file: Callable[[Path], str], name: str
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    path = folder / (name or "x")
    odd_file(path)
    (folder / "metadata.jsonl").write_text("{}")
    with limits(5), pytest.raises(LDMError):
        if name == "a.toml":
            read_config(path)
        else:
            open_data(str(path if name in ("a.tar", "a.parquet", "") else folder), OPTIONS)


def test_links_to_themselves_and_names_that_no_file_can_have(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = open_data(str(tmp_path), OPTIONS)
        data.batch(0, 8, torch.Generator().manual_seed(0))
    for name in ("x" * 5000, "a\0b", "/".join(["a"] * 3000)):
        with pytest.raises(LDMError):
            open_data(name, OPTIONS)
        rows = [{"file_name": name, "text": "a"}, {"file_name": "0.png", "text": "b"}]
        (tmp_path / "metadata.jsonl").write_bytes(json_lines(rows))
        with pytest.warns(UserWarning, match="1 pictures that are not there"):
            open_data(str(tmp_path), OPTIONS)


def test_pictures_outside_of_the_folder_are_named(tmp_path: Path) -> None:
    """As `datasets` reads them; but not without a word."""
    folder = tmp_path / "set"
    folder.mkdir()
    outside = tmp_path / "a.png"
    outside.write_bytes(encoded("PNG"))
    for name in ("../a.png", str(outside)):
        (folder / "metadata.jsonl").write_bytes(json_lines([{"file_name": name}]))
        with pytest.warns(UserWarning, match=rf"1 pictures outside of .*set \(such as {outside}\)"):
            open_data(str(folder), OPTIONS)


# --- Time ------------------------------------------------------------------------------------


def jsonl(text: Callable[[int], str]) -> Callable[[Path, int], object]:
    def read(folder: Path, size: int) -> object:
        (folder / "metadata.jsonl").write_text(text(size))
        return read_rows(folder / "metadata.jsonl")

    return read


def moved_paths(folder: Path, size: int) -> object:
    """Absolute names of another machine, of as many parts as a name can have."""
    pictures(folder)
    rows = [{"file_name": "/a" * 2000 + str(i), "text": "a"} for i in range(size // 4000)]
    (folder / "metadata.jsonl").write_bytes(json_lines([*rows, {"file_name": "0.png"}]))
    return open_data(str(folder), OPTIONS)


def one_path(folder: Path, size: int) -> object:
    pictures(folder)
    rows = [{"file_name": "/a" * (size // 2), "text": "a"}, {"file_name": "0.png"}]
    (folder / "metadata.jsonl").write_bytes(json_lines(rows))
    return open_data(str(folder), OPTIONS)


def csv_of(text: Callable[[int], str]) -> Callable[[Path, int], object]:
    def read(folder: Path, size: int) -> object:
        (folder / "metadata.csv").write_text(text(size))
        return read_rows(folder / "metadata.csv")

    return read


def caption(folder: Path, size: int) -> object:
    pictures(folder)
    (folder / "0.txt").write_text("\n".join("a" * (size // 2)))
    return open_data(str(folder), OPTIONS)


def tar_of(content: Callable[[int], bytes]) -> Callable[[Path, int], object]:
    def read(folder: Path, size: int) -> object:
        (folder / "a.tar").write_bytes(content(size))
        return open_data(str(folder / "a.tar"), OPTIONS)

    return read


def pax(text: bytes) -> bytes:
    return header(b"p", b"x", f"{len(text):o}".encode(), text)


def readings(folder: Path, size: int) -> object:
    """A field of its own for each text."""
    count = size // 40
    rows = [{"text": "a", "says": {f"f{i} 1": "x"}} for i in range(count)]
    (folder / "texts.jsonl").write_bytes(json_lines(rows))
    (folder / "embeddings.npy").write_bytes(array(np.ones((count, 1), np.float16)))
    return EmbeddedTexts(folder)


def toml(text: Callable[[int], str]) -> Callable[[Path, int], object]:
    def read(folder: Path, size: int) -> object:
        (folder / "a.toml").write_text(text(size))
        return read_config(folder / "a.toml")

    return read


def override(folder: Path, size: int) -> object:
    (folder / "a.toml").write_bytes(CONFIG)
    return read_config(folder / "a.toml", ["a." * (size // 2) + "b=1"])


def idx_gz(folder: Path, size: int) -> object:
    path = folder / "train-images-idx3-ubyte.gz"
    write_idx(path, np.zeros((size // 16, 4, 4), np.uint8))
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(size // 16, np.uint8))
    return open_data(str(folder), OPTIONS)


WORST = {
    "json, nested": jsonl(lambda n: "[" * n),
    "json, small rows": jsonl(lambda n: "{}\n" * (n // 3)),
    "json, one row": jsonl(lambda n: json.dumps({str(i): i for i in range(n // 12)})),
    "json, digits": jsonl(lambda n: '{"a": ' + "9" * n + "}"),
    "json, escapes": jsonl(lambda n: '{"a": "' + "\\ud800" * (n // 6) + '"}'),
    "json, names of other machines": moved_paths,
    "json, one name": one_path,
    "csv, columns": csv_of(lambda n: "a," * (n // 4) + "\n" + "b," * (n // 4)),
    "csv, quotes": csv_of(lambda n: 'a\n"' + '""' * (n // 2)),
    "csv, rows": csv_of(lambda n: "a,b\n" + "1,2\n" * (n // 4)),
    "caption": caption,
    "tar, headers of headers": tar_of(lambda n: header(b"p", b"x", b"0") * (n // 512)),
    "tar, properties": tar_of(lambda n: pax(b"2 " * (n // 2 - 1) + b"=\n")),
    "tar, digits": tar_of(lambda n: pax(b"9" * (n - 2000) + b"=\n")),
    "tar, records": tar_of(lambda n: pax(b"5 a=\n" * (n // 5 - 500))),
    "tar, members": tar_of(lambda n: header(b"a.png", b"0", b"0") * (n // 512)),
    "texts, fields": readings,
    "idx": idx_gz,
    "toml, one key": toml(lambda n: "a" + ".a" * (n // 2 - 2) + "=1"),
    "toml, keys": toml(lambda n: f"a{'.b' * 30} = 1\n".join(f"x{i}." for i in range(n // 72))),
    "toml, tables": toml(lambda n: "\n".join(f"[a.b{i}]" for i in range(n // 12))),
    "toml, nested": toml(lambda n: "a=" + "[" * (n - 2)),
    "toml, digits": toml(lambda n: "a=" + "9" * (n - 2)),
    "--set": override,
}


@pytest.mark.parametrize("kind", WORST)
def test_time_grows_with_the_size(tmp_path: Path, kind: str) -> None:
    """Of a megabyte, it takes not much more than four times as long as of a quarter."""
    folders = (tmp_path / str(number) for number in itertools.count())

    def seconds(size: int) -> float:
        folder = next(folders)
        folder.mkdir()
        before = time.process_time()
        try:
            with limits(60, 1 << 30):
                WORST[kind](folder, size)
        except LDMError as error:
            assert str(error)
        return time.process_time() - before

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_linear(seconds, 1 << 18, FLOOR, (1 << 20) - 64)


def test_a_line_that_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    with path.open("wb") as file:
        file.truncate(4 << 30)  # zeros, which take no space
    with limits(10, 1 << 30), pytest.raises(ArgumentError, match=f"more than {MOST_LINE:,} char"):
        read_rows(path)


def test_sparse_and_unfinished_members(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(header(b"a.png", b"S", b"0"))
    with pytest.raises(DataError, match="sparse member; pack it without --sparse"):
        open_data(str(tmp_path / "a.tar"), OPTIONS)
