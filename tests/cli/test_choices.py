"""``--choices``, ``--wildcards``, ``--all``: what is drawn, recorded, drawn again, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm.cli.generate import main
from ldm.cli.info import main as info
from ldm.images import read_parameters, read_settings
from ldm.images.metadata import parse_parameters
from ldm.text.wildcards import expand

Command = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Command:
    """Draw in a folder with wildcards, one step → (exit code, stdout, errors and warnings)."""
    monkeypatch.chdir(tmp_path)
    Path("words").mkdir()
    Path("words/animals.txt").write_text("# animals\ncat\n2::dog\n{big|small} bird\n")

    def run(*argv: str) -> Any:
        steps = [] if "--from" in argv else ["--steps", "1"]
        code = main(["--model", str(folder), *steps, *argv])
        out, err = capsys.readouterr()
        lines = err.splitlines()
        return code, out.splitlines(), [e for e in lines if e.startswith(("error: ", "warning: "))]

    return run


def prompts(paths: list[str]) -> list[str]:
    return [read_settings(path)["arguments"]["prompt"] for path in paths]


def test_all_combinations(command: Command) -> None:
    code, out, errors = command("{red|blue} {car|cat}", "--all", "--seed", "3")
    assert (code, errors) == (0, [])
    assert out == ["red-car-3.png", "red-cat-4.png", "blue-car-5.png", "blue-cat-6.png"]
    assert prompts(out) == ["red car", "red cat", "blue car", "blue cat"]
    code, out, _ = command("{a|b}", "c", "--all", "--num-images", "2", "--seed", "0")
    assert out == ["a-0.png", "a-1.png", "b-2.png", "b-3.png", "c-4.png", "c-5.png"]
    command("b", "--seed", "2", "-o", "want.png", "--batch-size", "1")
    difference = np.asarray(Image.open("want.png")).astype(int) - np.asarray(Image.open(out[2]))
    assert np.abs(difference).max() <= 1  # of another batch


def test_picture_i_is_drawn_by_seed_plus_i(command: Command) -> None:
    template = "a {red|blue|green} __animals__"
    argv = [template, "--wildcards", "words", "--num-images"]
    code, out, errors = command(*argv, "6", "--seed", "7", "-o", "six/")
    assert (code, errors) == (0, [])
    drawn = prompts(out)
    assert drawn == [expand(template, 7 + i, "words") for i in range(6)]
    assert len(set(drawn)) > 2
    assert prompts(command(*argv, "2", "--seed", "10", "-o", "two/")[1]) == drawn[3:5]
    several = command(template, template, "--wildcards", "words", "--seed", "7", "-o", "x.png")[1]
    assert prompts(several) == drawn[:2]


def test_variations_draw_by_the_seed_that_counts(command: Command) -> None:
    argv = ["{a|b|c|d}", "--choices", "--seed", "1", "--variation-strength", "0.1"]
    out = command(*argv, "--variation-seed", "5", "--num-images", "5")[1]
    assert prompts(out) == [expand("{a|b|c|d}", seed) for seed in range(5, 10)]


def test_the_template_is_recorded_beside_the_text(
    command: Command, capsys: pytest.CaptureFixture
) -> None:
    template = 'a {red|blue}, "{big|small}" cat'
    command(template, "--choices", "--seed", "4", "-o", "a.png")
    text = expand(template, 4)
    labels = parse_parameters(read_parameters("a.png"))
    assert (labels["Prompt"], labels["Template"], labels["Seed"]) == (text, template, "4")
    assert read_settings("a.png")["template"] == template
    assert info(["a.png"]) == 0
    assert template in capsys.readouterr().out
    assert command("--from", "a.png", "-o", "b.png") == (0, ["b.png"], [])
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    command("a red cat", "--choices", "-o", "plain.png")
    assert "Template" not in parse_parameters(read_parameters("plain.png"))
    assert "template" not in read_settings("plain.png")


def test_replay_draws_the_text_that_was_drawn(command: Command) -> None:
    """Also where the user's defaults read choices; files of wildcards are not needed."""
    command("{a|b} \\{c|d\\}", "--choices", "--seed", "1", "-o", "a.png")
    command("{a|b} __x__", "--seed", "1", "-o", "text.png")
    Path("ldm.toml").write_text('choices = true\nwildcards = "nowhere"\n')
    for name in ("a", "text"):
        code, _, errors = command("--from", f"{name}.png", "-o", f"{name}-2.png")
        assert (code, errors) == (0, [])
        assert Path(f"{name}.png").read_bytes() == Path(f"{name}-2.png").read_bytes()
    assert prompts(["text-2.png"]) == ["{a|b} __x__"]
    Path("ldm.toml").unlink()
    assert prompts(command("--from", "a.png", "{e|e}", "--choices", "-o", "e.png")[1]) == ["e"]
    assert read_settings("e.png")["template"] == "{e|e}"


def test_a_picture_of_a_batch_is_drawn_again(command: Command) -> None:
    command("{a|b|c} {d|e|f}", "--choices", "--num-images", "3", "--seed", "5", "-o", "a.png")
    assert read_settings("a-2.png")["batch"] == [3, 1]
    command("--from", "a-2.png", "-o", "b.png")
    assert Path("a-2.png").read_bytes() == Path("b.png").read_bytes()


def test_without_the_switch_braces_are_text(command: Command) -> None:
    code, out, lines = command("{red|blue} __animals__ car", "--seed", "1")
    assert (code, out) == (0, ["red-blue-animals-car-1.png"])
    assert prompts(out) == ["{red|blue} __animals__ car"]
    assert lines == [
        "warning: '{red|blue} __animals__ car' is drawn as it stands; --choices reads it as choices"
    ]
    for text in ("{red} car", "a [b|c]", "snake__case__name", "\\{a|b\\}"):
        assert command(text, "--seed", "1")[2] == []


def test_a1111s_grammar_in_choices(command: Command) -> None:
    template = "{[a|b]|[a|b]} {(c:1.2)|(c:1.2)} [{d|d}:e:0.5]"
    assert prompts(command(template, "--choices", "-o", "a.png")[1]) == ["[a|b] (c:1.2) [d:e:0.5]"]


def test_json_lines(command: Command) -> None:
    rows = [json.loads(row) for row in command("{a|b} c", "--all", "--seed", "1", "--json")[1]]
    assert [(row["prompt"], row["template"], row["seed"]) for row in rows] == [
        ("a c", "{a|b} c", 1),
        ("b c", "{a|b} c", 2),
    ]
    code, out, _ = command("{a", "--choices", "--json")
    assert (code, json.loads(out[0])["code"]) == (2, 2)


def test_files_of_prompts(command: Command) -> None:
    Path("p.jsonl").write_text(
        '{"prompt": "{a|b} one", "all": true}\n'
        '{"prompt": "{a|b} text"}\n'
        '{"prompt": "{a|b|c} two", "choices": true, "num_images": 2}\n'
        '{"prompt": "{a|b", "choices": true}\n'
        '{"prompt": "{a|b}", "all": 1}\n'
        '{"prompt": "{a|b} last", "all": true, "output": "last.png"}\n'
    )
    code, out, errors = command("--prompts", "p.jsonl", "--seed", "3")
    assert (code, errors) == (
        1,
        [
            "error: p.jsonl:4: '{a|b': a { is never closed; close it, or write \\{ for text",
            "error: p.jsonl:5: all is 1; expected true or false",
            "error: 2 of the lines of p.jsonl were not drawn",
        ],
    )
    two = [expand("{a|b|c} two", seed) for seed in (6, 7)]
    assert prompts(out) == ["a one", "b one", "{a|b} text", *two, "a last", "b last"]
    assert out[-2:] == ["last-1.png", "last-2.png"]
    assert [read_settings(path)["arguments"]["seed"] for path in out] == [3, 4, 5, 6, 7, 10, 11]

    Path("p.txt").write_text("{a|b} line\n__animals__\n")  # no JSON
    code, out, errors = command("--prompts", "p.txt", "--wildcards", "words", "--all", "-o", "o/")
    assert (code, errors) == (0, [])
    assert prompts(out) == ["a line", "b line", "cat", "dog", "big bird", "small bird"]
    Path("p.jsonl").write_text('{"prompt": "__animals__", "choices": false}\n')
    out = command("--prompts", "p.jsonl", "--wildcards", "words", "-o", "q/")[1]
    assert prompts(out) == ["__animals__"]


def test_too_many_pictures(command: Command) -> None:
    many = "{" + "|".join(map(str, range(400))) + "}"
    row = json.dumps({"prompt": many, "all": True})
    Path("p.jsonl").write_text(f"{row}\n" * 300)
    code, _, errors = command("--prompts", "p.jsonl")
    assert code == 2 and "p.jsonl asks for more than 100000 pictures" in errors[0]
    code, _, errors = command(many, "--all", "--num-images", "300")
    assert (code, errors) == (
        2,
        ["error: these are 120000 pictures; one command draws at most 100000"],
    )


def test_grid_and_plots(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    from ldm.images import sheets

    sheet = sheets.sheet

    def spy(pictures: list[Any], columns: int, labels: Any = (), **titles: Any) -> Any:
        seen.append((columns, list(labels), titles))
        return sheet(pictures, columns, labels, **titles)

    monkeypatch.setattr(sheets, "sheet", spy)
    grid = ["--seed", "1", "--grid", "-o"]
    assert command("{a|b} {c|d}", "--all", *grid, "all.png")[0] == 0
    assert seen.pop() == (2, ["a c", "a d", "b c", "b d"], {})
    assert command("{a|b} {c|d}", "--choices", "--num-images", "2", *grid, "r.png")[0] == 0
    assert seen.pop() == (2, [expand("{a|b} {c|d}", seed) for seed in (1, 2)], {})
    assert command("{a|b}", "--all", "--num-images", "2", *grid, "rows.png")[0] == 0
    labels = [f"seed {n}" for n in (1, 2, 3, 4)]
    assert seen.pop() == (2, labels, {"row_titles": ["a", "b"]})
    # A plot has one seed, and so one text; unless its axis is the seed.
    argv = ["{a|b|c} d", "--choices", "--seed", "5", "--x", "guidance_scale=1,2", "--y"]
    assert command(*argv, "sampler=ddim,euler", "-o", "plot.png")[0] == 0
    assert prompts(["plot.png"]) == [expand("{a|b|c} d", 5)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{a|b", "--choices"], r"'{a|b': a { is never closed; close it, or write \{ for text"),
        (["__animls__", "--wildcards", "words"], "__animls__ is unknown; did you mean 'animals'?"),
        (["__animals__", "--choices"], "__animals__ is unknown; give a folder of wildcards"),
        (["a", "--wildcards", "nowhere"], "the wildcards nowhere cannot be read (No such file"),
        (["{a|b}", "--all", "--no-choices"], "--all draws all choices, and --no-choices none"),
        (["{a|b}", "--all", "--x", "steps=1,2"], "--all draws a picture of each text"),
        (["{a|b}" * 20, "--all"], "more than 100,000 combinations"),
        (["{a|b}", "--choices", "-n", "{c|d}"], "the negative prompt '{c|d}' has choices"),
        (["<lora:{x|x}:1>", "--choices"], "<lora:x>"),
    ],
)
def test_refused(command: Command, argv: list[str], message: str) -> None:
    code, out, errors = command(*argv)
    assert code != 0 and out == [] and len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not list(Path().glob("*.png"))


def test_settings(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("ldm.toml").write_text('wildcards = "words"\n')
    assert prompts(command("{a|a} __animals__", "--seed", "1")[1])[0].startswith("a ")
    out = command("{a|a}", "--seed", "1", "--no-choices", "-o", "plain.png")[1]
    assert prompts(out) == ["{a|a}"]
    Path("ldm.toml").write_text("wildcard = 'words'\n")
    with pytest.raises(SystemExit):
        command("a")
    Path("ldm.toml").unlink()
    monkeypatch.setenv("LDM_CHOICES", "true")
    assert prompts(command("{a|a}", "--seed", "1", "-o", "b.png")[1]) == ["a"]


def test_a_file_that_changed_is_read_again(command: Command) -> None:
    for text in ("first", "second"):
        Path("words/animals.txt").write_text(text)
        argv = ["__animals__", "--wildcards", "words", "-o", f"{text}.png"]
        assert prompts(command(*argv)[1]) == [text]
