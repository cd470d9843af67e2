"""`tools.builtin_model.evaluate`: intervals, coverage, names, sheets, pictures, comparisons."""

import argparse
import json

import numpy as np
import pytest
from PIL import Image

from ldm.errors import ArgumentError
from tests.tools.test_evaluate import judged, row, seen, write_data
from tools.builtin_model import compare_reports
from tools.builtin_model.evaluation import (
    coverage,
    drawing,
    figures,
    intervals,
    names,
    prompts,
    report,
    sheets,
)
from tools.builtin_model.evaluation.prompts import Prompt, PromptThing

# Intervals


def test_wilson_s_interval_by_its_table():
    # Brown, Cai and DasGupta (2001) and R's prop.test without continuity correction.
    assert intervals.wilson(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)
    assert intervals.wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert intervals.wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert intervals.wilson(0, 0) is None


def test_the_bootstrap_s_interval_of_a_mean_is_that_of_theory():
    x = np.random.default_rng(1).normal(5, 2, 400)
    low, high = intervals.bootstrap(lambda rows: float(x[rows].mean()), [400], 1000)
    half = 1.96 * x.std() / 20
    assert (low + high) / 2 == pytest.approx(x.mean())
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    low, high = intervals.bootstrap(lambda rows: float(x[rows].mean()) - 5, [400])
    assert low == 0 and high > 0  # distances are never negative


def test_the_difference_of_two_shares():
    # Newcombe (1998), table II, row (a): 56/70 and 48/80, by method 10.
    a, b = 48 / 80, 56 / 70
    found = intervals.difference(a, intervals.wilson(48, 80), b, intervals.wilson(56, 70))
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)


# Precision and recall


def test_coverage_by_hand():
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    drawn = np.array([[0.5], [0.6], [0.7], [30.0]])
    # With one neighbour radii are 1, 1, 1, 8 of the real ones, 0.1, 0.1, 0.1, 29.3 of the drawn.
    found = coverage.coverage(drawn, real, neighbours=1)
    assert found.precision == 0.75  # 30 is far from all
    assert found.recall == 0.75  # within 29.3 of 30 is all but 0
    assert coverage.coverage(drawn, drawn, 1).recall == 1
    assert found.recall_interval[0] <= 0.75 <= found.recall_interval[1] <= 1


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 6)), rng.normal(size=(40, 6))
    whole = coverage.coverage(a, b)
    monkeypatch.setattr(coverage, "BLOCK", 7)
    assert coverage.coverage(a, b) == whole


def test_missing_modes_cost_recall_and_noise_costs_precision():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + 50])
    one_mode = coverage.coverage(rng.normal(size=(400, 4)), real)
    assert one_mode.precision > 0.8 and one_mode.recall < 0.55
    noisy = np.concatenate([real[:200] + 0.01, rng.normal(size=(200, 4)) * 1000])
    assert coverage.coverage(noisy, real).precision < 0.6


def test_the_halves_share_no_icon_and_have_the_same_nouns(tmp_path):
    rows = [row("train", "car", None, icon) for icon in "aabcde"]
    rows += [row("train", "bus", None, icon) for icon in "abc"]
    rows += [row("train", "tree", None, "a"), row("train", "car", "red", "z")]
    rows += [row("train", "dog", None, icon) for icon in "ab"]
    data = write_data(tmp_path, rows, [np.zeros((8, 8, 3), np.uint8)] * len(rows))
    first, second = coverage.halves(data, {"car", "bus", "tree"})
    nouns = [[data.rows[i]["noun"] for i in half] for half in (first, second)]
    assert nouns[0] == nouns[1] == ["bus", "car", "car"]
    icons = [{(data.rows[i]["noun"], data.rows[i]["icon"]) for i in h} for h in (first, second)]
    assert not icons[0] & icons[1] and len(icons[0]) == 3


# Names


def test_every_name_is_asked_for_twice_after_all_other_prompts():
    every = prompts.prompts(known=["banjo", "grapes", "car"])
    assert every[:847] == prompts.prompts()
    last = [prompt for _, prompt in every[847:]]
    assert last[:3] == last[3:] and {p.kind for p in last} == {"names"}
    assert {p.text for p in last} == {"a banjo", "grapes", "a car"}
    assert not last[0].composed


def test_names_are_listed_the_worst_first():
    items = [
        judged("names", ["bus"], seen("car")),
        judged("names", ["bus"], seen("bus")),
        judged("names", ["cat"], seen("dog")),  # "cat" is among the five
        judged("names", ["ant"], seen("dog")),
        judged("names", ["ant"], seen("dog")),
        judged("names", ["car"], seen("car")),
        judged("single", ["owl"], seen("car")),
    ]
    found = names.by_name(items)
    assert list(found) == ["ant", "cat", "bus", "car"]
    assert found["bus"]["seen"] == ["car", "bus"] and found["cat"]["within_five"] == 1
    text = "\n".join(names.lines(found))
    assert "Of 4 names, 1 are recognised in each of their pictures, 1 in one, 2 in none" in text
    assert names.recognised(items, {"bus", "car", "owl"}) == [False, True, True]
    assert figures.verdicts(items)["names"] == [False, True, False, False, False, True]
    assert names.lines({}) == []


def test_real_icons_of_names_are_the_held_out_ones_and_those_learnt_from(tmp_path):
    rows = [row("train", "car", None, icon) for icon in "ab"]
    rows += [row("held_out", "car", None, "c"), row("held_out", "owl", None, "d")]
    images = [np.full((8, 8, 3), value, np.uint8) for value in range(4)]
    data = write_data(tmp_path, rows, images)
    asked, pictures = names.held_out(data, {"car"})
    assert [p.noun for p in asked] == ["car"] and pictures[0].max() == 2
    asked, pictures = names.learnt(data, {"car"})
    assert [p.noun for p in asked] == ["car"] and pictures[0].max() < 2


def test_the_worst_style_has_its_interval():
    items = [judged("style", ["cat"], seen("cat"), style=("flat", "flat"))] * 3
    items += [judged("style", ["cat"], seen("cat"), style=("soft", "flat"))]
    found = figures.with_intervals(figures.verdicts(items))
    assert found["style_worst"] == found["style_soft"] == 0
    assert found["style_worst_interval"] == found["style_soft_interval"]
    assert figures.with_intervals({})["style_worst"] is None


# Sheets


def test_sheets_have_each_name_once_and_the_compositions(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(4)]
    items = [
        judged("names", ["cat"], seen("cat")),
        judged("names", ["ant"], seen("ant")),
        judged("names", ["cat"], seen("cat")),
        judged("colour", ["red cat"], seen("cat")),
    ]
    written = sheets.write(items, pictures, tmp_path)
    assert [path.name for path in written] == ["things.webp", "compositions.webp"]
    things = Image.open(written[0])
    assert things.width == 2 * Image.open(written[1]).width // 138 * 106
    assert sheets.write(items[3:], pictures[3:], tmp_path / "x") if (tmp_path / "x").mkdir() else 1
    assert not (tmp_path / "x" / "things.webp").exists()


def test_a_sheet_that_is_too_large_is_compressed_more():
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    picture = Image.fromarray(noise)
    assert sheets.quality(picture) == 90
    assert sheets.quality(picture, 20_000) < 90
    assert sheets.quality(picture, 10) == sheets.QUALITIES[-1]


# Kept pictures


class Pipe:
    """In the place of a pipeline: gray of the text's length; counts what it draws."""

    drawn = 0

    def __call__(self, texts, generator, **settings):
        self.drawn += len(texts)
        images = [Image.new("RGB", (8, 8), (len(text),) * 3) for text in texts]
        return argparse.Namespace(images=images)


@pytest.fixture
def drawing_arguments(tmp_path):
    return argparse.Namespace(
        pictures=tmp_path / "p",
        batch_size=2,
        num_inference_steps=2,
        guidance_scale=None,
        sampler=None,
    )


def asked(*texts: str) -> list[Prompt]:
    return [Prompt(text, "single", (PromptThing("cat"),)) for text in texts]


def test_pictures_that_are_there_are_not_drawn_again(drawing_arguments):
    pipe, settings = Pipe(), {"seed": 0}
    log = []
    args = (drawing_arguments, settings, log.append)
    drawing.draw_missing(pipe, asked("a", "bb", "ccc"), [0, 1, 2], *args)
    assert pipe.drawn == 3
    (drawing_arguments.pictures / "1.png").unlink()  # as if ended before
    found, seconds = drawing.draw_missing(pipe, asked("a", "bb", "dddd"), [0, 1, 7], *args)
    assert pipe.drawn == 5 and seconds is not None
    assert [p.getpixel((0, 0))[0] for p in found] == [1, 2, 4]
    assert drawing.draw_missing(pipe, asked("a"), [0], *args)[1] is None
    with pytest.raises(ArgumentError, match="has 'a' from the seed 0, where 'x' is asked for now"):
        drawing.draw_missing(pipe, asked("x"), [0], *args)
    with pytest.raises(ArgumentError, match="were drawn with seed 0, not 1"):
        drawing.draw_missing(pipe, asked("a"), [0], drawing_arguments, {"seed": 1}, log.append)
    assert pipe.drawn == 5


# Two reports


def write_report(folder, **shown) -> str:
    found = figures.with_intervals(
        {name: [True] * a + [False] * b for name, (a, b) in shown.items()}
    )
    folder.mkdir()
    text = json.dumps({"bars": report.bars(found, {})})
    (folder / "report.json").write_text(text)
    return str(folder)


def test_two_reports_are_compared_row_by_row(tmp_path, capsys):
    a = write_report(tmp_path / "a", both=(60, 40), count=(90, 10), style=(5, 5))
    b = write_report(tmp_path / "b", both=(85, 15), count=(88, 12))
    assert compare_reports.main([a, f"{b}/report.json"]) == 0
    out = capsys.readouterr().out
    both, count = out.splitlines()[2:]
    assert both.startswith("| both objects, pairs never together in training | 60.0% (50.2–69.1) |")
    assert "+25.0 (" in both and both.endswith("* |")
    assert "-2.0 (" in count and "*" not in count and "style" not in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "error: {a}/report.json cannot be read (No such file"),
        ("[]", "error: {a}/report.json is no report; python -m tools.builtin_model.evaluate"),
        ("x", "error: {a}/report.json is no report"),
        ('{"bars": []}', "measure nothing in common; draw the same --kinds in both"),
    ],
)
def test_what_cannot_be_compared_is_one_line(text, message, tmp_path, capsys):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    assert compare_reports.main([str(tmp_path)] * 2) == 2
    err = capsys.readouterr().err
    assert message.format(a=tmp_path) in err and err.count("\n") == 1
