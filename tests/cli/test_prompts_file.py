"""``ldm-generate --prompts FILE``: every good line is drawn, every bad one is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm import Pipeline
from ldm.cli.generate import main
from ldm.hires import hires_fix
from ldm.images import read_parameters
from ldm.images.metadata import parse_parameters
from ldm.techniques.outpainting import extend_canvas

Command = Callable[..., tuple[int, list[str], list[str]]]


@pytest.fixture
def command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Command:
    """Write a file of prompts and draw it, two steps → (exit code, stdout, errors on stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(content: str | bytes | list[Any], *argv: str, name: str = "p.txt") -> Any:
        if isinstance(content, list):
            content = "\n".join(map(json.dumps, content))
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        code = main(["--model", str(folder), "--steps", "2", "--prompts", name, *argv])
        out, err = capsys.readouterr()
        return code, out.splitlines(), [e for e in err.splitlines() if e.startswith("error: ")]

    return run


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder).optimize()  # as the command does


def same(path: str, pipe: Pipeline, prompt: str, **arguments: Any) -> bool:
    """Within 1 of 255: a batch may be summed up in another order."""
    want = np.asarray(pipe(prompt, **{"num_inference_steps": 2, **arguments}).images[0]).astype(int)
    got = np.asarray(Image.open(path))
    return got.shape == want.shape and np.abs(got - want).max() <= 1


def test_a_prompt_a_line(command: Command, pipe: Pipeline) -> None:
    text = "\ufeffa red car\n\n  # no picture\na (blue:1.3) cat\r\n   \n{not first} é"
    code, out, errors = command(text, "--seed", "7", "--num-images", "2")
    names = ["a-red-car-7", "a-red-car-8", "a-blue-1-3-cat-9", "a-blue-1-3-cat-10"]
    names += ["not-first-é-11", "not-first-é-12"]
    assert (code, out, errors) == (0, [f"{name}.png" for name in names], [])
    assert same("a-red-car-8.png", pipe, "a red car", seed=8)
    assert same("a-blue-1-3-cat-10.png", pipe, "a (blue:1.3) cat", seed=10)
    assert not same("a-blue-1-3-cat-10.png", pipe, "a blue cat", seed=10)
    assert parse_parameters(read_parameters("not-first-é-12.png"))["Prompt"] == "{not first} é"


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the pipeline drew."""
    sizes = []
    stream = Pipeline.stream

    def spy(self: Pipeline, prompts: list[str], **arguments: Any) -> Any:
        sizes.append(len(prompts))
        return stream(self, prompts, **arguments)

    monkeypatch.setattr(Pipeline, "stream", spy)
    return sizes


def test_lines_draw_in_one_batch(command: Command, sizes: list[int]) -> None:
    lines = [{"prompt": p} for p in "abcd"] + [{"prompt": "e", "width": 72}, {"prompt": "f"}]
    assert command(lines, "--batch-size", "3", "--seed", "1")[0] == 0
    assert sizes == [3, 1, 1, 1]


def test_arguments_of_lines(command: Command, pipe: Pipeline) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "a"},
        {"prompt": "b", "seed": 3, "num_images": 2, "width": 72, "height": 48},
        {"prompt": "c", "steps": 3, "guidance_scale": 2.5, "negative_prompt": "-blue"},
        {"prompt": "d", "sampler": "ddim", "eta": 0.5, "clip_skip": 2, "seed": 5},
        {"prompt": "e", "output": "mine.png", "num_inference_steps": 1},
        {"prompt": "f", "output": "two.png", "num_images_per_prompt": 2},
    ]
    code, out, errors = command(lines, "--seed", "5", "--height", "40")
    assert (code, errors) == (0, [])
    assert out == [
        "a-5.png", "b-3.png", "b-4.png", "c-8.png", "d-5.png", "mine.png", "two-1.png", "two-2.png"
    ]  # fmt: skip
    tall = {"height": 40}
    assert same("a-5.png", pipe, "a", seed=5, **tall)
    assert same("b-4.png", pipe, "b", seed=4, width=72, height=48)
    told = {"guidance_scale": 2.5, "negative_prompt": "-blue", "num_inference_steps": 3}
    assert same("c-8.png", pipe, "c", seed=8, **told, **tall)
    assert same("d-5.png", pipe, "d", seed=5, sampler="ddim", eta=0.5, clip_skip=1, **tall)
    assert same("mine.png", pipe, "e", seed=10, num_inference_steps=1, **tall)
    assert same("two-2.png", pipe, "f", seed=12, **tall)
    parameters = parse_parameters(read_parameters("c-8.png"))
    assert (parameters["Steps"], parameters["Negative prompt"]) == ("3", "-blue")
    assert (parameters["CFG scale"], parameters["Seed"]) == ("2.5", "8")


def test_an_image_and_a_strength(command: Command, pipe: Pipeline) -> None:
    start = Image.effect_noise((64, 40), 90).convert("RGB")
    start.save("start.png")
    lines = [{"prompt": "a", "strength": 0.5}, {"prompt": "b"}]
    assert command(lines, "-i", "start.png", "--seed", "1", name="p.jsonl")[0] == 0
    assert same("a-1.png", pipe, "a", seed=1, image=start, strength=0.5)
    assert same("b-2.png", pipe, "b", seed=2, image=start, strength=0.8)


@pytest.fixture
def pictures(command: Command) -> dict[str, Image.Image]:
    """Two pictures and a mask, as files in the working directory."""
    made = {
        "one.png": Image.effect_noise((64, 40), 90).convert("RGB"),
        "two.png": Image.effect_noise((48, 64), 60).convert("RGB"),
        "mask.png": Image.new("RGB", (64, 40)),
    }
    made["mask.png"].paste("white", (8, 8, 40, 32))
    for name, picture in made.items():
        picture.save(name)
    return made


def test_images_of_lines(
    command: Command, pipe: Pipeline, pictures: dict[str, Image.Image], tmp_path: Path
) -> None:
    """A strength of the command line is for the lines that have an image."""
    one, two, mask = pictures.values()
    lines: list[dict[str, Any]] = [
        {"prompt": "a", "image": "one.png", "strength": 1},
        {"prompt": "b", "image": str(tmp_path / "two.png")},
        {"prompt": "c"},
        {"prompt": "d", "image": "one.png", "mask": "mask.png", "mask_blur": 0},
        {"prompt": "e", "image": "one.png", "mask_image": "mask.png", "paste_back": False},
        {"prompt": "f", "image": "one.png", "outpaint": [8, 0, 0, 8], "mask_blur": 2.5},
        {"prompt": "g", "image": "none.png"},
        {"prompt": "h", "image": "p.txt"},
        {"prompt": "i", "mask": "mask.png"},
        {"prompt": "j", "image": "one.png", "mask": "one.png", "outpaint": 8},
        {"prompt": "k", "image": "one.png", "no_paste_back": True, "outpaint": "8"},
    ]
    code, out, errors = command(lines, "--seed", "1", "--strength", "0.5")
    assert code == 1
    names = [f"{letter}-{1 + i}.png" for i, letter in enumerate("abcdefghijk")]
    assert out == names[:6] + names[10:]
    assert [error.partition(" ")[2] for error in errors[:-1]] == [
        "p.txt:7: none.png does not exist; check the path",
        "p.txt:8: p.txt is not an image; give a PNG, JPEG or WebP file",
        "p.txt:9: --mask says what to do with an --image; give that, too",
        "p.txt:10: --mask and --outpaint both say what to draw anew; give one of them",
    ]
    start = {"image": one, "strength": 0.5}
    masked = start | {"mask_image": mask}
    assert same("a-1.png", pipe, "a", seed=1, image=one, strength=1.0)
    assert same("b-2.png", pipe, "b", seed=2, image=two, strength=0.5)
    assert same("c-3.png", pipe, "c", seed=3)
    assert same("d-4.png", pipe, "d", seed=4, mask_blur=0, **masked)
    assert same("e-5.png", pipe, "e", seed=5, paste_back=False, **masked)
    assert not same("e-5.png", pipe, "e", seed=5, **masked)
    wide, new = extend_canvas(one, 8, 0, 0, 8)
    around = {"image": wide, "mask_image": new, "strength": 0.5}
    assert same("f-6.png", pipe, "f", seed=6, mask_blur=2.5, **around)
    wide, new = extend_canvas(one, 8, 8, 8, 8)
    around |= {"image": wide, "mask_image": new}
    assert same("k-11.png", pipe, "k", seed=11, paste_back=False, **around)


def test_lines_steer(command: Command, pipe: Pipeline) -> None:
    """Switches go either way; seeds of variations count up, but for lines with one of their own."""
    lines: list[dict[str, Any]] = [
        {"prompt": "a", "schedule": "karras", "sampler": "euler"},
        {"prompt": "b", "guidance_rescale": 0.7, "guidance_interval": [0.3, 5]},
        {"prompt": "c", "guidance_interval": "0.3,5", "tiling": False},
        {"prompt": "d", "hires_scale": 1.5, "hires_strength": 0.5},
        {"prompt": "e", "variation_seed": 3, "variation_strength": 0.5, "num_images": 2},
        {"prompt": "f", "variation_strength": 0.5, "variation_seed": 3, "seed": 9},
    ]
    code, out, errors = command(lines, "--seed", "5", "--tiling")
    assert (code, errors) == (0, [])
    assert out == [
        "a-5.png", "b-6.png", "c-7.png", "d-8.png", "e-5-3.png", "e-5-4.png", "f-9-3.png"
    ]  # fmt: skip
    tiling = {"tiling": True}
    assert same("a-5.png", pipe, "a", seed=5, sampler="euler", schedule="karras", **tiling)
    interval = {"guidance_interval": (0.3, 5.0)}
    assert same("b-6.png", pipe, "b", seed=6, guidance_rescale=0.7, **interval, **tiling)
    assert same("c-7.png", pipe, "c", seed=7, **interval)
    assert not same("c-7.png", pipe, "c", seed=7, **interval, **tiling)
    options = {"num_inference_steps": 2, "seed": 8, **tiling}
    *_, last = hires_fix(pipe, "d", hires_scale=1.5, **options)
    assert np.abs(np.asarray(last.output.images[0], int) - Image.open("d-8.png")).max() <= 1
    turned = {"variation_seed": 4, "variation_strength": 0.5, **tiling}
    assert same("e-5-4.png", pipe, "e", seed=5, **turned)
    assert same("f-9-3.png", pipe, "f", seed=9, **turned | {"variation_seed": 3})


def test_lines_of_one_run(
    command: Command, pictures: dict[str, Image.Image], sizes: list[int]
) -> None:
    """Those in which nothing differs but the text and the seed that counts up."""
    runs: list[dict[str, Any]] = [
        {},
        {"tiling": True},
        {"guidance_interval": [0.3, 5]},
        {"image": "one.png"},
        {"image": "two.png"},
        {"image": "one.png", "mask": "mask.png"},
        {"image": "one.png", "mask": "mask.png", "paste_back": False},
    ]
    lines = [{"prompt": f"{i} {p}"} | run for i, run in enumerate(runs) for p in "ab"]
    assert command(lines, "--seed", "1", "--steps", "1")[0] == 0
    assert sizes == [2] * len(runs)


BAD = [
    ('{"prompt": "a", "colour": 1}', "'colour' is no argument of a line; these are: prompt, neg"),
    ('{"prompt": "a", "model": "x"}', "'model' is no argument of a line"),
    ('{"seed": 1}', 'it has no "prompt"'),
    ('{"prompt": 3}', "prompt is 3; expected a text"),
    ('{"prompt": "a", "seed": true}', "seed is true; expected a text or a number"),
    ('{"prompt": "a", "width": null}', "width is null; expected a text or a number"),
    ('{"prompt": "a", "width": 60.5}', "-W/--width: invalid int value: '60.5'"),
    ('{"prompt": "a", "width": 0}', "--width is 0; it must be at least 1"),
    ('{"prompt": "a", "width": 60}', "width is 60; it must be a positive multiple of 8"),
    ('{"prompt": "a", "guidance_scale": NaN}', "guidance_scale is nan"),
    (
        '{"prompt": "a", "steps": 3, "num_inference_steps": 4}',
        "'num_inference_steps' is said twice",
    ),
    ('{"prompt": "a", "sampler": "best"}', "sampler is 'best'; expected one of"),
    ('{"prompt": "a", "seed": -2}', "--seed is -2; it must be in"),
    ('{"prompt": "a", "strength": 0.5}', "--strength says how much of an --image to redraw"),
    ('{"prompt": "a\\ud800"}', "it must be text that is valid Unicode"),
    ('{"prompt": "' + "(" * 10_000 + '"}', "more than 100 brackets open at once"),
    ('{"prompt": "a", "tiling": 1}', "tiling is 1; expected true or false"),
    ('{"prompt": "a", "no_paste_back": "yes"}', 'no_paste_back is "yes"; expected true or false'),
    ('{"prompt": "a", "paste_back": true, "no_paste_back": true}', "'no_paste_back' is said twice"),
    ('{"prompt": "a", "guidance_interval": [1, "b"]}', "expected a text or a number"),
    ('{"prompt": "a", "guidance_interval": [1, 2, 3]}', "give two levels, such as 0.3,5"),
    ('{"prompt": "a", "guidance_interval": [5, 1]}', "guidance_interval is 5.0 to 1.0"),
    ('{"prompt": "a", "outpaint": [8, 8]}', "it is '8,8'; give one number of pixels, or four"),
    ('{"prompt": "a", "outpaint": 8}', "--outpaint says what to do with an --image"),
    ('{"prompt": "a", "image": ""}', "-i/--image/--init-img: it is empty"),
    ('{"prompt": "a", "image": 3}', "image is 3; expected a text"),
    ('{"prompt": "a", "hires_strength": 0.3}', "--hires-strength is of the second pass"),
    ('{"prompt": "a", "hires_scale": 99}', "hires_scale is 99.0; it must be in [1, 8]"),
    ('{"prompt": "a", "variation_seed": 3}', "need each other"),
    ('{"prompt": "a", "steps": 100000}', "num_inference_steps is 100000"),
    ('{"prompt": "a", "schedule": "best"}', "schedule is 'best'; did you mean"),
    ('{"prompt": "a", "output": "a.gif"}', "a.gif does not end in a known format"),
    ('{"prompt": "a", "output": "\\u0000"}', 'output is "\\u0000"; expected a text'),
    ('{"prompt": "a", "output": "no/such/folder.png"}', "no/such"),
    ('{"prompt": "<lora:none>"}', "<lora:none>: . has no such file"),
    ('{"prompt": "a"', "it is no JSON ("),
    ("[" * 100_000, "it is nested deeper than 100"),
    ("plain text", "it is no JSON ("),
    ('["a"]', 'it is ["a"]; expected an object such as {"prompt": "a cat"}'),
    ("{}", 'it has no "prompt"'),
]


def test_bad_lines_are_named(command: Command, pipe: Pipeline) -> None:
    """All at once, each beside good ones, which are drawn with the seeds of their places."""
    rows = ['{"prompt": "good"}']
    for line, _ in BAD:
        rows += [line, '{"prompt": "good", "steps": 1}']
    code, out, errors = command("\n".join(rows), "--seed", "1", name="p.jsonl")
    assert code == 1
    assert out == [f"good-{1 + i}.png" for i in range(0, len(rows), 2)]
    assert same("good-3.png", pipe, "good", seed=3, num_inference_steps=1)
    assert errors.pop() == f"error: {len(BAD)} of the lines of p.jsonl were not drawn"
    by_line = {int(error.split(":")[2]): error for error in errors}
    assert len(errors) == len(BAD)
    for i, (_, message) in enumerate(BAD):
        assert message in by_line[2 * i + 2]


def test_a_bad_line_in_a_batch(command: Command, pipe: Pipeline) -> None:
    code, out, errors = command(b"a\n" + b"(" * 101 + b"\nb\n\xff\nc", "--seed", "1")
    assert (code, out) == (1, ["a-1.png", "b-3.png", "c-5.png"])
    assert same("b-3.png", pipe, "b", seed=3)
    assert errors[0] == "error: p.txt:4: it is not UTF-8 text; save the file as UTF-8"
    assert errors[1].startswith("error: p.txt:2: a prompt has more than 100 brackets open at once")
    assert errors[2] == "error: 2 of the lines of p.txt were not drawn"


def test_files_that_are_there_already(command: Command) -> None:
    """Names that a line gives are refused; those made from prompts give way."""
    Path("b-2.png").write_text("")
    Path("own.png").write_text("")
    lines = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "A", "seed": 1}, {"prompt": "c"}]
    lines += [{"prompt": "d", "output": "own.png"}, {"prompt": "e", "output": "c-4.png"}]
    code, out, errors = command(lines, "--seed", "1")
    assert (code, out) == (1, ["a-1.png", "b-2-2.png", "a-1-2.png", "c-4.png"])
    assert "p.txt:5: own.png already exists" in errors[0]
    assert "p.txt:6: c-4.png is what line 4 is saved as; give this line an output" in errors[1]
    assert Path("b-2.png").read_text() == Path("own.png").read_text() == ""


@pytest.mark.parametrize(
    ("content", "argv", "code", "message"),
    [
        ("", [], 1, "p.txt has no line to draw"),
        ("# a\n\n", [], 1, "p.txt has no line to draw"),
        ('{"a": 1}', [], 1, "p.txt has no line to draw; p.txt:1: 'a' is no argument"),
        ("a", ["b"], 2, "--prompts takes all texts from a file; leave a prompt out"),
        ("a", ["--grid"], 2, "leave --grid out"),
        ("a", ["--x", "steps=1,2"], 2, "--prompts takes all texts from a file; leave --x out"),
        ("a", ["--y", "steps=1,2"], 2, "--prompts takes all texts from a file; leave --y out"),
        ("a", ["--from", "p.txt"], 2, "--prompts takes all texts from a file; leave --from out"),
        ("a", ["--image", "none.png"], 1, "p.txt:1: none.png does not exist"),
        ("a", ["--prompts", "none.txt"], 1, "none.txt cannot be read (No such file or directory)"),
        ("a", ["--prompts", "."], 1, ". is a folder; give an ordinary file"),
        ("a\n" * 3, ["--num-images", "40000"], 2, "p.txt asks for more than 100000 pictures"),
    ],
)
def test_refused(command: Command, content: str, argv: list[str], code: int, message: str) -> None:
    got, out, errors = command(content, *argv)
    assert (got, out, len(errors)) == (code, [], 1)
    assert message in errors[0]
