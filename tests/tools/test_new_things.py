"""Things for fine-tuning on a few pictures: their drawings, their folder, and the measure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.source import find_model
from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline
from ldm.training.data import CaptionedImages, open_data
from tools.builtin_model import build_thing, evaluate_thing
from tools.builtin_model.evaluation import thing_judge
from tools.builtin_model.icons import new_things
from tools.builtin_model.icons.new_things import THINGS, Pose

pytest.importorskip("resvg_py")
each_thing = pytest.mark.parametrize("name", THINGS)


@each_thing
def test_a_wrong_drawing_is_not_the_right_one_in_the_same_pose(name: str) -> None:
    thing = THINGS[name]
    rng = np.random.default_rng(0)
    for _ in range(20):
        wrong = new_things.any_wrong_pose(thing, rng)
        assert wrong.missing or wrong.colours
        assert wrong.missing <= set(thing.parts)
        right = Pose(**{**vars(wrong), "missing": frozenset(), "colours": {}})
        pictures = [new_things.picture(thing, pose, 64).astype(int) for pose in (wrong, right)]
        # At least one part in a hundred of the picture differs plainly.
        assert (np.abs(pictures[0] - pictures[1]).max(-1) > 40).mean() > 0.01, wrong


@each_thing
def test_all_of_a_thing_is_in_its_picture(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        picture = new_things.picture(THINGS[name], new_things.any_pose(rng), 128)
        edges = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
        assert all((edge == 255).all() for edge in edges)


def test_the_words_are_no_tokens_of_the_vocabulary() -> None:
    vocabulary = json.loads((find_model(None) / "tokenizer/vocab.json").read_text())
    for thing in THINGS.values():
        assert not {thing.word, f"{thing.word}</w>"} & set(vocabulary)


@each_thing
def test_the_folder_has_eight_captioned_pictures_that_training_opens(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "thing"
    assert build_thing.main(["--thing", name, "--output", str(folder), "--size", "32"]) == 0
    word = THINGS[name].word
    assert f'8 pictures in {folder}; the word is "{word}"' in capsys.readouterr().out
    data = open_data(str(folder))
    captions = data.captions(data.train)
    assert len(captions) == 8
    assert all(word in caption.split() for caption in captions)
    pixels = data.pixels(data.train)
    assert pixels.shape == (8, 3, 32, 32)
    assert len({each.numpy().tobytes() for each in pixels}) == 8
    about = json.loads((folder / "about.json").read_text())
    assert (about["word"], about["class_prompt"]) == (word, f"a {THINGS[name].noun}")
    assert build_thing.main(["--output", str(folder)]) == 2
    renamed = tmp_path / "renamed"
    assert build_thing.main(["--output", str(renamed), "--placeholder", "<new>"]) == 0
    assert (renamed / "1.txt").read_text() == "a <new> on a yellow background\n"


@each_thing
def test_forty_prompts_ask_for_the_thing_on_colours_that_show_it(name: str) -> None:
    prompts = evaluate_thing.asked(THINGS[name], name, "word")
    assert len(prompts) == evaluate_thing.COUNT == 40
    assert all("word" in prompt.text.split() for prompt in prompts)
    backgrounds = {prompt.background for prompt in prompts} - {None}
    assert len(backgrounds) == 8
    assert not backgrounds & set(THINGS[name].own)
    assert {prompt.place for prompt in prompts} == {None, "left", "right", "top", "bottom"}
    for prompt in prompts:
        assert prompt.background is None or f"{prompt.background} background" in prompt.text


def tiny_data(folder: Path) -> CaptionedImages:
    """Gray boxes in training, one held out."""
    folder.mkdir()
    images = np.full((20, 128, 128, 3), 255, np.uint8)
    rows = []
    for i in range(20):
        images[i, 30:90, 10 + i : 60 + 2 * i] = 90 + i
        row = {"caption": "a box", "noun": "box", "set": "s", "icon": str(i), "colour": None}
        rows.append(row | {"background": None, "split": "held_out" if i == 19 else "train"})
    np.save(folder / "images.npy", images)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CaptionedImages(folder)


def test_the_judge_is_kept_and_is_of_its_icons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"STEPS": 2, "BATCH": 10, "DRAWN": 4, "SIZE": 32}.items():
        monkeypatch.setattr(thing_judge, name, value)
    data = tiny_data(tmp_path / "data")
    model = thing_judge.trained(data, tmp_path, lambda text: None)
    kept = thing_judge.trained(data, tmp_path, pytest.fail)
    pictures = [new_things.picture(thing, Pose(), 64) for thing in THINGS.values()]
    assert thing_judge.seen(model, pictures) == thing_judge.seen(kept, pictures)
    accuracy = thing_judge.accuracy(kept, data, count=4)
    assert len(accuracy) == 2 * len(THINGS) + 1
    data.rows[0]["icon"] = "another"
    with pytest.raises(ArgumentError, match=r"classifier\.json is of other icons than"):
        thing_judge.trained(data, tmp_path, pytest.fail)


def test_the_judge_learns_from_things_in_their_colours_and_from_all_else_as_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also things whose hues are turned are others."""
    batches: list[list[int]] = []

    def cross_entropy(logits: Tensor, wanted: Tensor, **options: float) -> Tensor:
        batches.append(wanted.tolist())
        return logits.sum()

    turned = torch.arange(20) % 3 == 0
    monkeypatch.setattr(thing_judge, "augment", lambda x, size: (x, turned))
    monkeypatch.setattr(thing_judge.F, "cross_entropy", cross_entropy)
    for name, value in {"STEPS": 3, "BATCH": 20, "DRAWN": 3}.items():
        monkeypatch.setattr(thing_judge, name, value)
    thing_judge.fit(torch.zeros(5, 3, 48, 48, dtype=torch.uint8), lambda text: None)
    for wanted in batches:
        things = [label > 0 for label in wanted]
        assert things == [i < 6 and i % 3 > 0 for i in range(20)]
    assert {label for wanted in batches for label in wanted} <= set(range(len(THINGS) + 1))


def test_the_judge_sees_the_foreground_as_large_as_it_goes() -> None:
    thing = THINGS["cyclops-imp"]
    shown: list[Tensor] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            shown.append(x)
            return torch.eye(len(thing_judge.NAMES))[[2] * len(x)], None

    pictures = [
        new_things.picture(thing, Pose(), 128),
        new_things.picture(thing, Pose(), 128, 0.4, (255, 255, 255), (0.0, 1.0)),
    ]
    assert thing_judge.seen(Watched(), pictures) == [thing_judge.NAMES[2]] * 2  # type: ignore
    large, small = shown[0]
    assert (large - small).abs().mean() < 0.1
    assert (shown[0].flip(3) == shown[1]).all()


def test_pictures_are_judged_with_background_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    thing = THINGS["robot-snail"]
    prompts = evaluate_thing.asked(thing, "robot-snail", thing.word)
    on_yellow = next(p for p in prompts if p.background == "yellow" and not p.place)
    on_left = next(p for p in prompts if p.place == "left" and not p.background)
    pictures = [build_thing.arranged(thing, build_thing.ARRANGEMENTS[i], 128) for i in (1, 3)]
    monkeypatch.setattr(
        thing_judge, "seen", lambda model, pictures: ["robot-snail", thing_judge.OTHER]
    )
    for order, figures in (
        ([on_yellow, on_left], (0.5, 1, 1)),
        ([on_left, on_yellow], (0.5, 0, 0)),
    ):
        found = evaluate_thing.figures(evaluate_thing.judge(None, order, pictures))  # type: ignore
        assert tuple(found.values()) == figures


def test_nothing_to_measure_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_thing.main([]) == 2
    assert "give --lora, --textual-inversion or --model" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base itself, as if it were trained, draws what its control draws."""
    monkeypatch.setattr(thing_judge, "STEPS", 2)
    monkeypatch.setattr(thing_judge, "DRAWN", 8)
    tiny_data(tmp_path / "data")
    options: dict[str, object] = {"--data": tmp_path / "data", "--judge": tmp_path / "judge"}
    options |= {
        "--output": tmp_path / "out",
        "--model": find_model(None),
        "--prompts": 3,
        "--steps": 2,
    }
    seen: list[Image.Image] = []
    draw = evaluate_thing.draw

    def watched(pipe: Pipeline, *rest: object) -> tuple[list[Image.Image], float]:
        pictures, seconds = draw(pipe, *rest)  # type: ignore
        seen.extend(pictures)
        return pictures, seconds

    monkeypatch.setattr(evaluate_thing, "draw", watched)
    assert evaluate_thing.main([str(part) for pair in options.items() for part in pair]) == 0
    assert len(seen) == 9
    for tuned, base in zip(seen[:3], seen[3:6], strict=True):
        assert (np.asarray(tuned) == np.asarray(base)).all()
    assert (np.asarray(seen[6]) != np.asarray(seen[0])).any()
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["tuned"] == report["base, with the word"]
    assert (tmp_path / "out/contact-tuned.png").is_file()
