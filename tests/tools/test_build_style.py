"""`tools.builtin_model.build_style`: a folder in a new style that training opens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ldm.training.data import open_data
from tools.builtin_model import build_style
from tools.builtin_model.icons import new_style
from tools.builtin_model.icons.nouns import Noun, Subject
from tools.builtin_model.icons.sources import BuildError, Icon

BODY = '<path fill="#dd2e44" stroke="#333" stroke-width="2" d="M2 8h28v16H2z"/>'


def subject(number: int) -> Subject:
    """An icon of the new set: a red box with an outline."""
    icon = Icon(new_style.SET, f"box-{number}", None, BODY, (0, 0, 32, 32))
    return Subject(icon, "box", Noun("box", ("box",), (icon.name,), common=True))


def test_a_split_holds_a_part_out_and_depends_on_nothing_else() -> None:
    subjects = [subject(i) for i in range(200)]
    found = new_style.split(subjects)
    assert len(found.held_out) == new_style.HELD_OUT
    assert {s.icon.name for s in found.train} | {s.icon.name for s in found.held_out} == {
        s.icon.name for s in subjects
    }
    assert found == new_style.split(subjects)
    assert len(new_style.split(subjects[:9]).held_out) == 3


def test_the_folder_opens_in_training_with_the_style_in_every_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(
        new_style, "read", lambda archives: new_style.split([subject(i) for i in range(9)])
    )
    monkeypatch.setattr(build_style, "licences", lambda archives, packages: "CC-BY")
    monkeypatch.setattr(build_style.sources, "fetch", lambda package, archives: archives)
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        arguments = ["--output", str(folder), "--size", "32", "--variants", "2"]
        assert build_style.main(arguments) == 0
    assert "12 pictures in" in capsys.readouterr().out
    for path in sorted(folders[0].rglob("*.*")):
        assert path.read_bytes() == (folders[1] / path.relative_to(folders[0])).read_bytes()
    data = open_data(str(folders[0]))
    assert (len(data.train), len(data.held_out)) == (12, 3)
    captions = data.captions(data.train) + data.captions(data.held_out)
    assert all(text.endswith(f", {new_style.WORD}") for text in captions)
    assert all("box" in text for text in captions)
    assert data.pixels(data.train).shape == (12, 3, 32, 32)
    assert build_style.main(["--output", str(tmp_path / "c"), "--word", "thick"]) == 0
    data = open_data(str(tmp_path / "c"))
    captions = data.captions(data.train) + data.captions(data.held_out)
    assert all(text.endswith(", thick") for text in captions)
    assert build_style.main(["--output", str(folders[0])]) == 2
    assert "pass --force" in capsys.readouterr().err


def test_what_the_model_knows_lies_beside_it(tmp_path: Path) -> None:
    data, out = tmp_path / "icons", tmp_path / "known"
    data.mkdir()
    np.save(data / "images.npy", np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3))
    kinds = ["one", "two", "one", "one", "one"]
    splits = ["train", "train", "train", "held_out", "train"]
    rows = [
        {"caption": f"a {i}", "kind": kind, "split": split}
        for i, (kind, split) in enumerate(zip(kinds, splits, strict=True))
    ]
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert build_style.write_known(data, 3, 0, out) == 3
    found = open_data(str(out), {"held_out": 0})
    assert found.captions(found.train) == ["a 0", "a 2", "a 4"]
    with pytest.raises(BuildError, match="has 3 pictures of single things, not 4"):
        build_style.write_known(data, 4, 0, tmp_path / "more")


def test_a_missing_archive_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(archives: Path) -> None:
        raise BuildError("no archive")

    monkeypatch.setattr(new_style, "read", missing)
    assert build_style.main(["--output", str(tmp_path / "style")]) == 1
    assert "no archive" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_options_out_of_range_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        build_style.parse(["--variants", "0"])
    assert error.value.code == 2
    assert "--variants is 0; it must be at least 1" in capsys.readouterr().err
