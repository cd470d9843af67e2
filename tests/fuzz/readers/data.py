"""Readers of training data: each opens a set as a recipe does, and draws a batch of it."""

from __future__ import annotations

import functools
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ldm.training.config import read_config
from ldm.training.data import EmbeddedTexts, open_data
from ldm.training.data.idx import write_idx
from ldm.training.data.pictures import Pictures
from ldm.training.data.stream import Stream
from tests.fuzz.reader import Reader

OPTIONS = {"size": 4, "cache": 1}
COUNT = 3
CONFIG = b"""recipe = "pixel"
data = "data/x"  # a folder
output = "runs/x"
steps = 10
batch_size = 4
learning_rate = 1e-3
betas = [0.9, 0.99]

[model]
block_out_channels = [32, 64]

[options]
prompts = ["a", 'b']
phases = [{until = 1.0, size = 8, batch_size = 2}]
[options.data]
size = 8
classes = ["a", "b"]
"""
TAR_TOKENS = (b"ustar\x0000", b"ustar  \0", b"30 mtime=1.5\n", b"11 size=99\n", b"\x80", b"\xff")


@functools.cache
def encoded(kind: str, side: int = 4) -> bytes:
    """Return a small picture as a file."""
    out = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (side, side + 1, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def draw(data: Any) -> None:
    """Use a set as training does: a batch, the held-out rows, its captions and labels."""
    data.batch(0, 2, torch.Generator().manual_seed(0))
    held_out = data.held_out[:2]
    if len(held_out):
        data.pixels(held_out)
    if isinstance(data, Stream):
        return
    assert isinstance(data, Pictures)
    rows = torch.arange(min(len(data), 4))
    if data._captions is not None:
        assert all(isinstance(text, str) for text in data.captions(rows))
    if data.classes:
        assert int(data.labels(rows).max()) < len(data.classes)
    assert all(isinstance(name, str) for name in data.classes)


def opens(**options: Any) -> Callable[[Path], object]:
    """Return a reader of the set that a file is, or of its folder."""
    return lambda path: draw(open_data(str(path), {**OPTIONS, **options}))


def opens_folder(**options: Any) -> Callable[[Path], object]:
    """Return a reader of the set in a file's folder."""
    return lambda path: draw(open_data(str(path.parent), {**OPTIONS, **options}))


def pictures(folder: Path) -> None:
    """Put pictures beside the file."""
    (folder / "in").mkdir(exist_ok=True)
    for i in range(COUNT):
        (folder / f"{i}.png").write_bytes(encoded("PNG"))
        (folder / "in" / f"{i}.jpg").write_bytes(encoded("JPEG"))


def rows() -> list[dict[str, Any]]:
    names = [f"{i}.png" for i in range(COUNT)] + [f"in/{i}.jpg" for i in range(COUNT)]
    return [{"file_name": name, "text": "a cat", "label": i % 2} for i, name in enumerate(names)]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def metadata_files() -> list[bytes]:
    named = [{**row, "label": "cat", "more": [1, {"a": None}]} for row in rows()]
    several = [{**row, "text": ["a", "b"]} for row in rows()]
    return [json_lines(rows()), json_lines(named), json_lines(several)]


def csv_files() -> list[bytes]:
    lines = [f'{row["file_name"]};"a; b";{row["label"]}' for row in rows()]
    text = "\n".join(["file_name;text;label", *lines])
    return [text.encode(), text.replace(";", ",").encode("utf-16")]


def kohya(folder: Path) -> None:
    """Put sd-scripts' folders beside the file, which is a caption."""
    for name in ("2_sks dog", "1_cat"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "a.png").write_bytes(encoded("PNG"))


def array(values: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def described_arrays(folder: Path) -> None:
    kept = [{"caption": "a", "label": 0, "weight": 2, "split": "train"} for _ in range(COUNT)]
    (folder / "metadata.jsonl").write_bytes(json_lines(kept))


def images_beside(folder: Path) -> None:
    (folder / "images.npy").write_bytes(array(np.zeros((COUNT, 4, 5, 3), np.uint8)))


def weighted_rows() -> list[bytes]:
    splits = ["train", "test", "train"]
    kept = [{"caption": "a", "label": i, "weight": 0.5, "split": s} for i, s in enumerate(splits)]
    return [json_lines(kept)]


def embeddings_beside(folder: Path) -> None:
    (folder / "embeddings.npy").write_bytes(array(np.ones((2, 4), np.float16)))


def texts() -> list[bytes]:
    says = {"noun 1": "car", "colour 1": "red", "noun 2": "none"}
    return [json_lines([{"text": "a red car", "says": says}, {"text": "a"}])]


def read_texts(path: Path) -> None:
    EmbeddedTexts(path.parent).targets(torch.arange(2))


def text_rows_beside(folder: Path) -> None:
    (folder / "texts.jsonl").write_bytes(texts()[0])


def idx_files(compressed: bool) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.gz" if compressed else "a")
        write_idx(path, np.zeros((COUNT, 4, 4), np.uint8))
        return [path.read_bytes()]


def labels_beside(folder: Path) -> None:
    write_idx(folder / "train-labels-idx1-ubyte", np.arange(COUNT, dtype=np.uint8))


def tars() -> list[bytes]:
    """Shards of each style, with long names, captions, JSON and labels."""
    found = []
    for style in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=style) as tar:
            for i in range(COUNT):
                key = "d/" * 60 * (style != tarfile.USTAR_FORMAT) + str(i)
                parts = {"png": encoded("PNG"), "txt": b"a cat", "cls": b"1"}
                if i == 0:
                    parts = {"jpg": encoded("JPEG"), "json": b'{"text": "a", "label": 1}'}
                for end, content in parts.items():
                    info = tarfile.TarInfo(f"{key}.{end}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        content = out.getvalue().rstrip(b"\0")
        found.append(content + bytes(-len(content) % 512 + 1024))  # less than a whole record
    return found


def picture_files() -> list[bytes]:
    kinds = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA"]
    return [encoded(kind, 8) for kind in kinds]


def parquets() -> list[bytes]:
    import datasets
    import pyarrow
    from pyarrow import parquet

    files = []
    for compression in ("NONE", "snappy", "zstd"):
        features = datasets.Features(
            image=datasets.Image(),
            text=datasets.Value("string"),
            label=datasets.ClassLabel(names=["a", "b"]),
        )
        table = pyarrow.table(
            {
                "image": [{"bytes": encoded("PNG"), "path": None}] * COUNT,
                "text": ["a", "b", None],
                "label": [0, 1, 0],
            },
            schema=features.arrow_schema,
        )
        out = io.BytesIO()
        parquet.write_table(table, out, compression=compression)
        files.append(out.getvalue())
    return files


def saved(folder: Path, name: str) -> None:
    """Save a set as `datasets` does, beside the file, which is one of it."""
    import datasets

    datasets.disable_progress_bars()
    values = {"image": [{"bytes": encoded("PNG"), "path": None}] * COUNT, "text": ["a"] * COUNT}
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    datasets.Dataset.from_dict(values, features).save_to_disk(str(folder))
    assert (folder / name).exists()


def saved_files(name: str) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        saved(Path(folder), name)
        return [Path(folder, name).read_bytes()]


def saved_reader(name: str) -> Reader:
    return Reader(
        f"saved table: {name}",
        functools.partial(saved_files, name),
        opens_folder(),
        name,
        surroundings=functools.partial(saved, name=name),
        slow=True,
    )


def override(path: Path) -> None:
    """Read a file's text as what ``--set`` is given."""
    config = path.with_name("good.toml")
    config.write_bytes(CONFIG)
    read_config(config, [path.read_bytes().decode("utf-8", "surrogateescape")])


def gzipped(files: list[bytes]) -> list[bytes]:
    return [gzip.compress(file) for file in files]


DATA = [
    Reader(
        "metadata.jsonl", metadata_files, opens_folder(), "metadata.jsonl", surroundings=pictures
    ),
    Reader("metadata.csv", csv_files, opens_folder(), "metadata.csv", surroundings=pictures),
    Reader(
        "caption",
        lambda: [b"a cat\n", b"a\nb\n"],
        opens_folder(),
        "2_sks dog/a.txt",
        surroundings=kohya,
    ),
    Reader(
        "images.npy",
        lambda: [
            array(np.zeros((COUNT, 4, 5, 3), np.uint8)),
            array(np.zeros((COUNT, 4, 4), np.uint8)),
        ],
        opens_folder(),
        "images.npy",
        surroundings=described_arrays,
    ),
    Reader(
        "rows of images.npy",
        weighted_rows,
        opens_folder(),
        "metadata.jsonl",
        surroundings=images_beside,
    ),
    Reader("texts.jsonl", texts, read_texts, "texts.jsonl", surroundings=embeddings_beside),
    Reader(
        "embeddings.npy",
        lambda: [array(np.ones((2, 4), np.float16))],
        read_texts,
        "embeddings.npy",
        surroundings=text_rows_beside,
    ),
    Reader(
        "IDX",
        functools.partial(idx_files, False),
        opens_folder(),
        "train-images-idx3-ubyte",
        surroundings=labels_beside,
    ),
    Reader(
        "IDX, gzipped",
        functools.partial(idx_files, True),
        opens_folder(),
        "train-images-idx3-ubyte.gz",
        surroundings=labels_beside,
    ),
    Reader("shards", tars, opens(), "a.tar", TAR_TOKENS),
    Reader(
        "shards, streamed", tars, opens(streaming=True, held_out=1, buffer=4), "a.tar", TAR_TOKENS
    ),
    Reader("picture of a set", picture_files, opens_folder(), "0.png", surroundings=pictures),
    Reader("parquet", parquets, opens(), "a.parquet", (b"PAR1",), slow=True),
    Reader(
        "parquet, streamed",
        parquets,
        opens(streaming=True, held_out=1, buffer=4),
        "a.parquet",
        (b"PAR1",),
        slow=True,
    ),
    saved_reader("state.json"),
    saved_reader("dataset_info.json"),
    saved_reader("data-00000-of-00001.arrow"),
    Reader(
        "training config",
        lambda: [CONFIG],
        read_config,
        "a.toml",
        (b"[[", b"= ", b".", b"1979-05-27", b'"""', b"\\u0000"),
    ),
    Reader(
        "setting",
        lambda: [b"steps=5", b"model.a.b=[1, 2]", b"options.data.classes=['a']"],
        override,
        "set",
        (b"=", b".", b"[", b"{a=", b"9" * 500),
    ),
]
