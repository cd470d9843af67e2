"""`tools.builtin_model.evaluate_vocabulary`: names judged by the icons that pictures are like."""

import json
from pathlib import Path

import pytest
import torch

from tools.builtin_model import compose, evaluate_vocabulary
from tools.builtin_model.evaluation import classifier
from tools.builtin_model.evaluation.classifier import Classifier, Labels
from tools.builtin_model.icons.nouns import Noun, Subject
from tools.builtin_model.icons.sources import Icon

CAR = Noun("car", ("car",), ("car",), common=True)


def subject(
    name: str, icon_set: str = "noto", noun: Noun | None = None, subgroup: str = "", box: int = 4
) -> Subject:
    body = f'<rect width="{box}" height="{box}" fill="#c00"/>'
    icon = Icon(icon_set, name.replace(" ", "-"), None, body, (0, 0, 16, 16))
    return Subject(icon, name, noun, keeps_colours=subgroup == "arrow", subgroup=subgroup)


SUBJECTS = [
    subject("car", noun=CAR),
    subject("acorn", "noto"),
    subject("acorn", "twemoji", box=8),
    subject("anvil", "game-icons"),
    subject("flag of japan", subgroup="country-flag"),
    subject("singer", subgroup="person-role"),
    subject("back arrow", subgroup="arrow"),
]


def test_names_are_those_of_no_everyday_thing_and_of_five_kinds() -> None:
    names = evaluate_vocabulary.by_name(SUBJECTS)
    kinds = {name: evaluate_vocabulary.kind_of(icons) for name, icons in names.items()}
    assert kinds == {
        "acorn": "things",
        "anvil": "silhouettes",
        "flag of japan": "flags",
        "singer": "people",
        "back arrow": "signs",
    }
    everyday = evaluate_vocabulary.by_name(SUBJECTS, everyday=True)
    assert everyday == {"car": SUBJECTS[:1]}
    assert evaluate_vocabulary.kind_of(everyday["car"]) == "everyday"
    texts = {prompt.noun: prompt.text for prompt in evaluate_vocabulary.asked(names)}
    assert texts.keys() == kinds.keys()
    assert texts["acorn"] == "an acorn" and texts["flag of japan"] == "a flag of japan"


def test_guesses_are_the_names_of_the_most_similar_icons_each_once() -> None:
    names = ["a", "b", "a", "c", "d", "e", "f"]
    similar = torch.tensor([[0.1, 0.9, 0.8, 0.7, 0.2, 0.3, 0.0], [0.5, *[-torch.inf] * 6]])
    assert evaluate_vocabulary.guesses(similar, names) == [["b", "a", "c", "e", "d"], ["a"]]


def test_a_real_icon_is_guessed_by_those_of_other_sets() -> None:
    """The flag has no other icon and is not asked; acorns do not see their own set."""
    subjects = [*SUBJECTS[1:3], SUBJECTS[4], subject("acorn", "noto", box=9)]
    names = [compose.name(s) for s in subjects]
    seen = torch.eye(4)
    seen[1] = torch.tensor([0.0, 0.6, 0.8, 0.0])  # the second acorn is like the flag
    found = evaluate_vocabulary.real_guesses(seen, subjects, names, {"acorn"})
    assert found[0] == ("acorn", ["acorn"])  # only twemoji's icon is of another set
    assert found[1] == ("acorn", ["flag of japan", "acorn"])
    assert len(found) == 3
    counted = evaluate_vocabulary.figures(found, {"acorn": "things", "flag of japan": "flags"})
    assert counted.keys() == {"all", "things"}
    assert counted["things"]["right"] == pytest.approx(2 / 3)
    assert counted["things"]["within 5"] == 1


def test_a_judge_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_vocabulary.main(["--judge", str(tmp_path)]) == 2
    assert "has no classifier.json; the --output of a run of" in capsys.readouterr().err


def test_the_command_draws_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(
        evaluate_vocabulary.compose, "read_vocabulary", lambda archives: compose.weigh(SUBJECTS)
    )
    classifier.save(Classifier(Labels(("car",), ("red",))), {}, tmp_path)
    arguments = ["--judge", str(tmp_path), "--output", str(tmp_path / "names"), "--prompts", "2"]
    assert evaluate_vocabulary.main([*arguments, "--steps", "1"]) == 0
    report = json.loads((tmp_path / "names" / "report.json").read_text())
    assert [len(row["guesses"]) for row in report["pictures"]] == [5, 5]
    assert report["drawn"]["all"]["pictures"] == 2
    assert report["real"]["things"]["pictures"] == 2
    assert (tmp_path / "names" / "names.webp").stat().st_size <= 1_000_000
