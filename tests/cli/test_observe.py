"""Steps, animations, words and plots of ``ldm-generate``: what they show, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ImageFilter import BoxBlur

import ldm.images.sheets
from ldm import Pipeline
from ldm.cli.common import FAILED, USAGE
from ldm.cli.generate import main
from ldm.cli.observe import chosen, few_colours
from ldm.hires import hires_fix
from ldm.images import read_parameters, stretch, to_pil
from ldm.images.metadata import parse_parameters
from ldm.images.sheets import GAP, heat
from ldm.unet import UNet

Command = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Command:
    """Run it in an empty folder with the small model → names on stdout, errors and warnings."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str, code: int = 0) -> tuple[list[str], list[str]]:
        try:
            got = main(["--model", str(folder), *argv])
        except SystemExit as stop:  # argparse
            got = stop.code
        out, err = capsys.readouterr()
        told = [line for line in err.splitlines() if line.startswith(("error: ", "warning: "))]
        assert got == code, err
        return out.splitlines(), told

    return run


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder).optimize()  # as the command does


def pixels(image: Image.Image | str) -> np.ndarray:
    image = Image.open(image) if isinstance(image, str) else image
    return np.asarray(image.convert("RGB")).astype(int)


def cell(whole: Image.Image, column: int, row: int = 0, left: int = 0, top: int = 0) -> np.ndarray:
    """A picture of 64x64 on a sheet; the last on the right and below ones without margins."""
    x, y = left + column * (64 + 2 * GAP) + GAP, top + row * (64 + 2 * GAP) + GAP
    return pixels(whole.crop((x, y, x + 64, y + 64)))


# Steps


@pytest.mark.parametrize(
    ("steps", "want"),
    [
        (1, [1]),
        (2, [1, 2]),
        (10, list(range(1, 11))),
        (11, [1, 2, 3, 4, 5, 7, 8, 9, 10, 11]),
        (0, [0]),
    ],
)
def test_which_steps_are_shown(steps: int, want: list[int]) -> None:
    assert chosen(steps) == want
    many = chosen(1000)
    assert (len(many), many[0], many[-1]) == (10, 1, 1000)


def test_all_three_beside_each_picture(command: Command, pipe: Pipeline) -> None:
    """Of a batch, each picture's own; and the pictures are what they are without."""
    argv = ["a red car", "--num-images", "2", "--seed", "5", "--steps", "3"]
    names, told = command(*argv, "--save-steps", "--animation", "webp", "--explain", "-o", "a.png")
    ends = ("", "-steps", "-animation", "-words")
    assert names == [
        f"a-{n}{end}.{'webp' if end == '-animation' else 'png'}" for n in (1, 2) for end in ends
    ]
    assert sorted(names) == sorted(path.name for path in Path().iterdir())
    assert told == []
    command(*argv, "-o", "plain.png")
    assert (pixels("a-2.png") == pixels("plain-2.png")).all()
    for name in names:
        assert parse_parameters(read_parameters(name))["Seed"] == ("5" if "-1" in name else "6")

    with pipe.explain() as attention:
        run = list(pipe.stream(["a red car"] * 2, seed=5, num_inference_steps=3))
    strip = Image.open("a-2-steps.png")
    assert strip.width == 3 * (64 + 2 * GAP)
    for index, progress in enumerate(run[:2]):
        want = pixels(to_pil(pipe.decode(progress.x0[1:]))[0])
        assert want.std() > 10
        assert (cell(strip, index) == want).all()
    assert (cell(strip, 2) == pixels("a-2.png")).all()

    animation = Image.open("a-2-animation.webp")
    assert animation.n_frames == 4
    for index, progress in enumerate(run):
        animation.seek(index)
        small = to_pil(pipe.preview(progress.x0[1:]) * 2 - 1)[0]
        assert np.abs(pixels(animation) - pixels(stretch(small, 64, 64))).mean() < 6  # lossy
    animation.seek(3)
    own, other = (np.abs(pixels(animation) - pixels(f"a-{n}.png")).mean() for n in (2, 1))
    assert own < other / 2  # lossy, too
    assert animation.info["loop"] == 0

    words = Image.open("a-2-words.png")
    maps = attention.words("a red car", picture=1)
    assert [word for word, _ in maps] == ["a", "red", "car"]
    assert (cell(words, 0) == pixels("a-2.png")).all()
    first = pixels(heat(Image.open("a-2.png"), maps[0][1].numpy()))
    assert (cell(words, 1) == first).all()
    assert first.std() > 10


def test_a_gif(command: Command, pipe: Pipeline) -> None:
    """Each frame has the colours that suit it, not those of the first."""
    argv = ["a red car", "--seed", "5", "--steps", "3", "-o", "a.png"]
    names, told = command(*argv, "--animation", "gif")
    assert (names, told) == (["a.png", "a-animation.gif"], [])
    animation = Image.open("a-animation.gif")
    assert (animation.n_frames, animation.info["loop"]) == (4, 0)
    assert read_parameters("a-animation.gif") == read_parameters("a.png")
    run = pipe.stream("a red car", seed=5, num_inference_steps=3)
    small = [to_pil(pipe.preview(progress.x0) * 2 - 1)[0] for progress in run]
    want = [pixels(stretch(frame, 64, 64)) for frame in small] + [pixels("a.png")]
    for index, frame in enumerate(want):
        animation.seek(index)
        assert animation.info["duration"] == (1500 if index == 3 else 1000)
        got = pixels(animation)
        assert (got == pixels(few_colours(Image.fromarray(frame.astype(np.uint8))))).all()
        assert np.abs(got - frame).mean() < 10
    Path("a.png").unlink()
    _, (error,) = command(*argv[:-1], "a.gif", code=FAILED)
    assert error.startswith("error: a.gif does not end in a known format")


def test_few_colours() -> None:
    """On a slope between colours, dots of 256 look like it from three pixels away."""
    x, y = np.meshgrid(np.linspace(0, 255, 128), np.linspace(0, 255, 128))
    slope = Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))
    few = few_colours(slope)
    assert len(few.getcolors()) > 200
    near, far = (
        np.abs(pixels(one.filter(BoxBlur(1))) - pixels(slope.filter(BoxBlur(1)))).mean()
        for one in (few.convert("RGB"), slope.quantize(256, dither=0).convert("RGB"))
    )
    assert near < 1 < 1.5 < far


def test_words_of_all_texts(command: Command, pipe: Pipeline) -> None:
    """A row's worth of words for each text that AND joins and that was heard, in two passes."""
    prompt = "a cat AND [red|blue]"
    command(prompt, "--seed", "5", "--steps", "2", "--hires-scale", "1.5", "-o", "a.png",
            "--explain", "--save-steps", "--animation", "gif")  # fmt: skip
    with pipe.explain() as attention:
        *_, last = hires_fix(pipe, prompt, hires_scale=1.5, seed=5, num_inference_steps=2)
    assert (pixels(last.output.images[0]) == pixels("a.png")).all()
    maps = attention.words()
    assert [word for word, _ in maps] == ["a", "cat", "red", "blue"]
    words, side = Image.open("a-words.png"), 96 + 2 * GAP
    shown = pixels(words.crop((2 * side + GAP, GAP, 2 * side + GAP + 96, GAP + 96)))
    assert (shown == pixels(heat(last.output.images[0], maps[1][1].numpy()))).all()
    assert Image.open("a-steps.png").width == 3 * side
    assert Image.open("a-animation.gif").size == (96, 96)


def test_a_picture_of_a_batch_again(command: Command) -> None:
    """--from draws the whole batch; what is shown is still the one picture's."""
    command("a car", "--num-images", "3", "--seed", "5", "--steps", "2", "-o", "a.png", "--explain")
    command("--from", "a-2.png", "-o", "b.png", "--explain", "--save-steps")
    assert Path("b.png").read_bytes() == Path("a-2.png").read_bytes()
    assert (pixels("b-words.png") == pixels("a-2-words.png")).all()
    assert (cell(Image.open("b-steps.png"), 1) == pixels("a-2.png")).all()


def test_an_image_that_is_kept(command: Command) -> None:
    """Strength 0 runs no step: there is the picture alone to show."""
    Image.new("RGB", (64, 64), "red").save("start.png")
    extra = ["--save-steps", "--animation", "png", "--explain"]
    names, _ = command("a", "-i", "start.png", "--strength", "0", *extra, "-o", "a.png")
    assert names == ["a.png", "a-steps.png", "a-animation.png", "a-words.png"]
    assert (cell(Image.open("a-words.png"), 0) == pixels("a.png")).all()
    assert Image.open("a-animation.png").size == (64, 64)


# Plots


def test_a_plot(command: Command) -> None:
    argv = ["a car", "--steps", "2", "--seed", "7"]
    axes = ["--x", "guidance-scale=1, 7.5", "--y", "sampler=ddim,euler,dpmpp_2m_karras"]
    assert command(*argv, *axes, "--no-labels", "-o", "plot.png")[0] == ["plot.png"]
    assert sorted(Path().iterdir()) == [Path("plot.png")]
    plot = Image.open("plot.png")
    assert plot.size == (128, 192)
    corners = [(x, y) for x in (0, 64) for y in (0, 64, 128)]
    assert len({plot.crop((x, y, x + 64, y + 64)).tobytes() for x, y in corners}) == 6
    for column, row, scale, sampler in ((1, 0, "7.5", "ddim"), (0, 2, "1", "dpmpp_2m_karras")):
        command(*argv, "--sampler", sampler, "-g", scale, "-o", "one.png", "--force")
        box = (64 * column, 64 * row, 64 * column + 64, 64 * row + 64)
        assert (pixels(plot.crop(box)) == pixels("one.png")).all()
    told = parse_parameters(read_parameters("plot.png"))
    assert told.items() >= {
        "Script": "X/Y/Z plot",
        "X Type": "CFG Scale",
        "X Values": "1, 7.5",
        "Y Type": "Sampler",
        "Y Values": "ddim, euler, dpmpp_2m_karras",
        "Grid": "2x3",
        "Seed": "7",
    }.items()  # fmt: skip
    _, warned = command("--from", "plot.png", "-o", "again.png")
    assert warned == ["warning: plot.png shows several pictures; the first is drawn again"]
    assert (pixels("again.png") == pixels(plot.crop((0, 0, 64, 64)))).all()


def test_a_plot_has_one_seed_and_titles(command: Command) -> None:
    """A random seed is picked once; prompts with commas stand in quotes."""
    axes = ["--x", 'prompt="a, b",c,"a, b"', "--y", "steps=1"]
    command(*axes, "-o", "plot.png")
    plot = Image.open("plot.png").convert("RGB")
    left, top = plot.width - 3 * (64 + 2 * GAP), plot.height - (64 + 2 * GAP)
    cells = [cell(plot, n, left=left, top=top) for n in range(3)]
    assert (cells[0] == cells[2]).all()
    assert not (cells[0] == cells[1]).all()
    assert left > 20 and top > 12
    assert parse_parameters(read_parameters("plot.png"))["X Values"] == "a, b, c, a, b"


def test_sizes_of_a_plot(command: Command) -> None:
    command("a", "--steps", "1", "--seed", "1", "--x", "width=40,64", "--no-labels", "-o", "p.png")
    command("a", "--steps", "1", "--seed", "1", "-W", "40", "-o", "a.png")
    plot = Image.open("p.png")
    assert plot.size == (128, 64)
    assert (pixels(plot.crop((0, 0, 40, 64))) == pixels("a.png")).all()


# What is refused, in one line, before anything is drawn


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--x", "steps"], "--x is 'steps'; expected NAME=VALUE,VALUE,… with one of the names "),
        (["--y", "magic=1,2"], "--y is 'magic=1,2'; expected NAME=VALUE"),
        (["--x", "output=a.png"], "--x is 'output=a.png'; expected NAME=VALUE"),
        (["--x", "model=a,b"], "--x is 'model=a,b'; expected NAME=VALUE"),
        (["--x", "dtype=float32"], "--x is 'dtype=float32'; expected NAME=VALUE"),
        (["--x", "steps="], "--x is 'steps='; give at least one value"),
        (["--x", "steps=1,,2"], "--x: argument --num-inference-steps/--steps: invalid int"),
        (["--x", "steps=1,many"], "invalid int value: 'many'"),
        (["--x", "sampler=ddim,magic"], "sampler is 'magic'; expected one of"),
        (["--x", 'prompt="a,b'], "the values are no list; write a value with a comma"),
        (["--x", "steps=1\n2"], "the values are no list"),
        (["--x", "steps=1,0"], "--num-inference-steps is 0; it must be at least 1"),
        (["--x", "strength=0.5,1"], "--strength says how much of an --image to redraw"),
        (["--x", "seed=1,-2"], "--seed is -2; it must be in [0"),
        (["--x", "steps=1,2", "--y", "num_inference_steps=3"], "both change num_inference_steps"),
        (["--x", "steps=1,2", "--grid"], "leave --grid out"),
        (["--x", "steps=1,2", "--num-images", "2"], "leave --num-images out"),
        (["--x", "steps=1,2", "another"], "--x and --y take one prompt, not 2"),
        (["--x", "seed=" + "1," * 400, "--y", "eta=" + "0," * 400], "values"),
        (["--x", "seed=" + "1," * 400 + "1", "--y", "eta=" + "0," * 400 + "0"], "these are 160801"),
        (["--save-steps", "--grid"], "--save-steps is about single pictures; leave --grid out"),
        (["--animation", "png", "--x", "steps=1"], "--animation is about single pictures; leave"),
        (["--explain", "--y", "steps=1"], "--explain is about single pictures; leave --y out"),
        (["--animation", "bmp"], "argument --animation: invalid choice: 'bmp'"),
    ],
)
def test_refused_before_the_model_is_loaded(
    command: Command, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.delattr(Pipeline, "from_pretrained")
    if message == "values":
        message = "--x: argument -s/--seed: invalid int value: ''"
    names, (told,) = command("a", *argv, code=USAGE)
    assert names == []
    assert message in told
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a", "--save-steps"], "the strip of --save-steps would have "),
        (
            ["a", "--animation", "webp"],
            "the animation would have 51 frames of 64x64 = 208,896 pix",
        ),
        (["--explain", "b c d e f g h i j"], "the words of --explain would have "),
        (["--explain", "b c d AND e f g AND [h|i|j]"], "the words of --explain would have "),
        (["--explain", "b c", "--hires-scale", "2"], "the words of --explain would have "),
        (["a", "--grid", "--num-images", "30"], "the sheet would have "),
        (["--x", "guidance_scale=" + "1," * 30 + "1"], "the sheet would have "),
        (["--x", "steps=1,100000"], "num_inference_steps is 100000; it must be at least 1 and fit"),
        (["--x", "eta=0,3", "--sampler", "ddim"], "eta is 3.0; it must be in [0, 1]"),
        (["--x", "width=64,7"], "width is 7; it must be a positive multiple of 8"),
    ],
)
def test_too_large_or_wrong(
    command: Command, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.delattr(UNet, "forward")  # nothing is drawn
    monkeypatch.setattr(ldm.images.sheets, "MOST_PIXELS", 60_000)
    names, (told,) = command(*argv, code=USAGE)
    assert names == []
    assert message in told
    assert list(Path().iterdir()) == []


def test_a_format_that_is_too_small(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(UNet, "forward")
    axis = "guidance_scale=" + "1," * 300 + "1"
    _, (told,) = command("--x", axis, "-o", "a.webp", code=USAGE)
    assert "a .webp file holds 16383 pixels a side: choose .png" in told


def test_files_that_are_there(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Pipeline, "from_pretrained")
    Path("a-steps.png").write_text("mine")
    _, (told,) = command("a", "-o", "a.png", "--save-steps", code=FAILED)
    assert told.startswith("error: a-steps.png already exists; choose another --output")
    assert Path("a-steps.png").read_text() == "mine"
