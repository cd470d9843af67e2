"""The measure of a LoRA that learnt a style, and the command that takes it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.checkpoints.tensors import write_tensors
from ldm.pipeline import Pipeline
from ldm.training.data import CaptionedImages
from tools.builtin_model import evaluate_lora
from tools.builtin_model.evaluation import classifier, styles
from tools.builtin_model.evaluation.classifier import Classifier, Labels
from tools.builtin_model.evaluation.prompts import FORTY, Prompt, PromptThing
from tools.builtin_model.evaluation.styles import StyleJudge
from tools.builtin_model.icons import new_style
from tools.builtin_model.icons.captions import STYLES
from tools.builtin_model.icons.nouns import Noun, Subject
from tools.builtin_model.icons.sources import Icon

BODY = '<path fill="#dd2e44" stroke="#333" stroke-width="2" d="M2 8h28v16H2z"/>'


def write_data(folder: Path) -> None:
    """A red box of each style in training, one of them held out."""
    folder.mkdir()
    images = np.full((6, 128, 128, 3), 255, np.uint8)
    images[:, 30:90, 20:100] = (200, 30, 40)
    np.save(folder / "images.npy", images)
    row = {"caption": "a box", "noun": "box", "icon": "box", "colour": None, "background": None}
    rows = [row | {"set": name, "split": "train"} for name in STYLES]
    rows.append(row | {"set": "noto", "split": "held_out"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))


def box(number: int) -> Subject:
    icon = Icon(new_style.SET, f"box-{number}", None, BODY, (0, 0, 32, 32))
    return Subject(icon, "box", Noun(FORTY[0], ("box",), (icon.name,)))


def test_prompts_are_of_one_thing_and_the_style_comes_last(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    asked = evaluate_lora.wanted(CaptionedImages(tmp_path / "data"), 80)
    assert {prompt.kind for prompt in asked} == {"single"}
    assert {prompt.noun for prompt in asked} == {*FORTY, "box"}  # "box" is held out
    text = evaluate_lora.styled(asked[0], "outlined").text
    assert text == f"{asked[0].text}, outlined"
    text = evaluate_lora.styled(asked[0], "outlined", 0.15).text
    assert text == f"[{asked[0].text}:{asked[0].text}, outlined:0.15]"


def test_shares_are_of_the_style_and_of_the_things_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A judge that reads the style from the left half, and the thing from the right one."""

    class ByHalves(Classifier):
        def opinions(self, pictures, among, batch=64):  # type: ignore
            names = [FORTY[0] if picture[0, -1, 0] else FORTY[1] for picture in pictures]
            return [classifier.Opinion((name,), name, "red") for name in names]

    class ByLeft(StyleJudge):
        def seen(self, pictures, batch=32):  # type: ignore
            return ["outlined" if picture[0, 0, 0] else "flat" for picture in pictures]

    pictures = np.zeros((4, 64, 64, 3), np.uint8)
    pictures[:3, :, :32] = 255
    pictures[:1, :, 32:] = 255
    # What is judged is the foreground; here, all of it.
    monkeypatch.setattr("tools.builtin_model.evaluation.judge.find_things", lambda rgb: [])
    asked = [Prompt("a thing", "single", (PromptThing(FORTY[0]),))] * 4
    found = evaluate_lora.measure(
        ByHalves(Labels(tuple(FORTY), ("red",))),
        ByLeft(),
        asked,
        [Image.fromarray(picture) for picture in pictures],
        "outlined",
    )
    assert found == {"style": 0.75, "thing recognised": 0.25}


def test_judges_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_lora.main(["--lora", "x", "--judge", str(tmp_path)]) == 2
    assert "has no classifier.json; the --output of a run of" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_a_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that adds nothing draws what the base draws, so the figures are the same."""
    pytest.importorskip("resvg_py")
    write_data(tmp_path / "data")
    subjects = [box(i) for i in range(40)]
    monkeypatch.setattr(new_style, "read", lambda archives: new_style.split(subjects, 3))
    monkeypatch.setattr(styles, "STEPS", 3)
    monkeypatch.setattr(styles, "BATCH", 16)
    things = Classifier(Labels((*FORTY, "a box"), ("red",)))
    (tmp_path / "judge").mkdir()
    classifier.save(things, {}, tmp_path / "judge")
    weight = Pipeline.from_pretrained(device="cpu").unet.state_dict()
    key = "mid_block.attentions.0.proj_in"
    outputs, inputs = weight[f"{key}.weight"].shape[:2]
    ends = (1, 1) if weight[f"{key}.weight"].dim() == 4 else ()
    name = f"lora_unet_{key.replace('.', '_')}"
    lora = {
        f"{name}.lora_down.weight": torch.ones(2, inputs, *ends),
        f"{name}.lora_up.weight": torch.zeros(outputs, 2, *ends),
    }
    write_tensors(lora, tmp_path / "zero.safetensors")
    options = {"--data": tmp_path / "data", "--lora": tmp_path / "zero.safetensors"}
    options |= {"--judge": tmp_path / "judge", "--output": tmp_path / "out"}
    arguments = [str(part) for pair in options.items() for part in pair]
    assert (
        evaluate_lora.main([*arguments, "--prompts", "2", "--steps", "2", "--word", "thick"]) == 0
    )
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["prompts"], report["style"], report["word"]) == (2, "outlined", "thick")
    for words in (evaluate_lora.WITHOUT, evaluate_lora.WITH):
        assert report[f"base, {words}"] == report[f"lora, {words}"]
    assert "style of 3 icons, outlined" in report["judges"]
    assert (tmp_path / "out/contact.png").is_file()
    sheet = np.asarray(Image.open(tmp_path / "out/contact.png"))
    rows = np.split(sheet, 4)
    assert (rows[0] == rows[2]).all() and (rows[1] == rows[3]).all()
    assert (rows[0] != rows[1]).any()
