"""``ldm-generate`` does as its arguments say; names go to stdout, all else to stderr."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldm import Pipeline, __version__
from ldm.cli.generate import main
from ldm.images import read_parameters
from ldm.images.metadata import parse_parameters
from ldm.samplers import SAMPLERS, SCHEDULES
from ldm.unet import UNet

ROOT = Path(__file__).parents[2]
Command = Callable[..., tuple[list[str], str]]


@pytest.fixture
def command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Command:
    """Run it in an empty folder, two steps unless told else → (lines of stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: str) -> tuple[list[str], str]:
        assert main(["--model", str(folder), "--steps", "2", *argv]) == 0
        out, err = capsys.readouterr()
        return out.splitlines(), err

    return run


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder).optimize()  # as the command does


def pixels(image: Image.Image | str) -> np.ndarray:
    image = Image.open(image) if isinstance(image, str) else image
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def same(a: Image.Image | str, b: Image.Image | str) -> bool:
    return pixels(a).shape == pixels(b).shape and bool((pixels(a) == pixels(b)).all())


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


# What is drawn


@pytest.mark.parametrize(
    ("argv", "arguments"),
    [
        ([], {}),
        (["-n", "blue, ugly"], {"negative_prompt": "blue, ugly"}),
        (["--steps", "3", "-g", "1.25"], {"num_inference_steps": 3, "guidance_scale": 1.25}),
        (["-W", "72", "-H", "48"], {"width": 72, "height": 48}),
        (["--sampler", "dpmpp_2m_karras"], {"sampler": "dpmpp_2m_karras"}),
        (["--sampler", "DPM++ 2M Karras"], {"sampler": "dpmpp_2m_karras"}),
        (["--sampler", "heun", "--schedule", "SGM Uniform"], {"sampler": "heun_sgm_uniform"}),
        (["--sampler", "ddim", "--eta", "0.7"], {"sampler": "ddim", "eta": 0.7}),
        (["--clip-skip", "2"], {"clip_skip": 1}),
        (["-i", "start.png"], {"image": "start.png"}),
        (["-i", "start.png", "--strength", "0.5"], {"image": "start.png", "strength": 0.5}),
    ],
)
def test_the_arguments_reach_the_pipeline(
    command: Command, pipe: Pipeline, argv: list[str], arguments: dict[str, Any]
) -> None:
    noise(64, 40).save("start.png")
    assert command("a red car", "--seed", "5", "-o", "a.png", *argv)[0] == ["a.png"]
    want = pipe("a red car", seed=5, **{"num_inference_steps": 2, **arguments}).images[0]
    assert same("a.png", want)
    if arguments:  # and they change it
        plain = pipe("a red car", seed=5, num_inference_steps=2).images[0]
        assert not same("a.png", plain)


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["-o", "a.png", "-x y"], "-x y"),
        (["-o", "a.png", "--", "-x"], "-x"),
        (["-x y", "-o", "a.png"], "-x y"),
    ],
)
def test_prompts_that_look_like_options(command: Command, argv: list[str], name: str) -> None:
    command(*argv)
    assert parse_parameters(read_parameters("a.png"))["Prompt"] == name


def test_without_a_prompt(command: Command, pipe: Pipeline) -> None:
    assert command("", "--seed", "3")[0] == ["picture-3.png"]
    assert same("picture-3.png", pipe("", seed=3, num_inference_steps=2).images[0])


def test_the_built_in_model_is_the_default(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ldm.checkpoints.source.asset_path", lambda name: folder.parent / name)
    (folder.parent / "weights").symlink_to(folder)
    assert main(["a", "--steps", "1", "-o", "a.png"]) == 0
    assert parse_parameters(read_parameters("a.png"))["Model"] == "ldm built-in"


def test_formats_and_devices(command: Command, pipe: Pipeline) -> None:
    argv = ("a", "--seed", "1", "--device", "cpu", "--dtype", "float32")
    for name in ("a.png", "a.jpg", "a.webp"):
        assert command(*argv, "-o", name)[0] == [name]
        assert parse_parameters(read_parameters(name))["Seed"] == "1"
    assert same("a.png", pipe("a", seed=1, num_inference_steps=2).images[0])
    command("a", "--seed", "1", "--dtype", "bfloat16", "-o", "half.png")
    assert not same("half.png", "a.png")
    assert np.abs(pixels("half.png") - pixels("a.png")).mean() < 10


# Several pictures


@pytest.mark.parametrize("batch_size", ["1", "2", "3"])
def test_several_pictures(command: Command, pipe: Pipeline, batch_size: str) -> None:
    argv = ["a cat", "--num-images", "2", "--seed", "7", "a dog", "-o", "x.png"]
    names, err = command(*argv, "--batch-size", batch_size)
    assert names == ["x-1.png", "x-2.png", "x-3.png", "x-4.png"]
    for name, prompt, seed in zip(names, ["a cat"] * 2 + ["a dog"] * 2, range(7, 11), strict=True):
        written = parse_parameters(read_parameters(name))
        assert (written["Prompt"], written["Seed"]) == (prompt, str(seed))
        alone = pixels(pipe(prompt, seed=seed, num_inference_steps=2).images[0])
        assert np.abs(pixels(name) - alone).max() <= 1
    assert "4 pictures in " in err


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red Car!", "a-red-car-1.png"),
        ("../../etc/passwd", "etc-passwd-1.png"),
        ('two\nlines, "quoted" & emoji 🚗', "two-lines-quoted-emoji-1.png"),
        ("🚗", "picture-1.png"),
        (" \t ", "picture-1.png"),
        ("汽车" * 60, "汽车" * 16 + "汽-1.png"),
        ("-x y", "x-y-1.png"),
    ],
)
def test_default_names(command: Command, prompt: str, name: str) -> None:
    assert command(prompt, "--seed", "1", "--steps", "1")[0] == [name]
    assert Path(name).stat().st_size > 0


@pytest.mark.parametrize("folder_name", ["new/deep/", "here", "."])
def test_a_folder_as_output(command: Command, folder_name: str) -> None:
    """It is made where it ends in a slash; names are those of no --output."""
    Path("here").mkdir()
    names, _ = command("a", "b c", "--seed", "7", "-o", folder_name)
    where = Path(folder_name)
    assert list(map(Path, names)) == [where / "a-7.png", where / "b-c-8.png"]
    command("a", "--seed", "7", "-o", "alone.png")
    assert same(names[0], "alone.png")


@pytest.mark.parametrize(
    ("prompts", "each", "size"),
    [(1, 3, (128, 128)), (2, 3, (192, 128)), (3, 1, (128, 128)), (1, 1, (64, 64))],
)
def test_grid(command: Command, prompts: int, each: int, size: tuple[int, int]) -> None:
    """A row for each prompt where there are several pictures of each; else about a square."""
    texts = ["a", "b", "c"][:prompts]
    argv = [*texts, "--num-images", str(each), "--seed", "4", "--steps", "1", "--batch-size", "2"]
    assert command(*argv, "--grid", "--no-labels", "-o", "grid.png")[0] == ["grid.png"]
    assert Image.open("grid.png").size == size
    assert sorted(Path().iterdir()) == [Path("grid.png")]
    written = parse_parameters(read_parameters("grid.png"))
    assert (written["Seed"], written["Size"]) == ("4", "64x64")
    command(*argv, "-o", "alone.png")
    last = f"alone-{prompts * each}.png" if prompts * each > 1 else "alone.png"
    column, row = (prompts * each - 1) % (size[0] // 64), (prompts * each - 1) // (size[0] // 64)
    box = (64 * column, 64 * row, 64 * column + 64, 64 * row + 64)
    assert same(Image.open("grid.png").crop(box), last)


# The size of a picture drawn from an image


@pytest.mark.parametrize(
    ("image", "argv", "size"),
    [
        ((64, 40), [], (64, 40)),
        ((50, 30), [], (48, 24)),  # rounded down, as diffusers does
        ((640, 480), [], (72, 48)),  # as many pixels as the model draws
        ((640, 480), ["-W", "96"], (96, 72)),  # the other side keeps the shape
        ((640, 480), ["-H", "48"], (64, 48)),
        ((640, 480), ["-W", "40", "-H", "40"], (40, 40)),
        ((5, 3), [], (8, 8)),
    ],
)
def test_image_sizes(
    command: Command, image: tuple[int, int], argv: list[str], size: tuple[int, int]
) -> None:
    noise(*image).save("start.png")
    command("a", "--image", "start.png", "-o", "a.png", *argv)
    assert Image.open("a.png").size == size


# What is told


def test_streams(command: Command) -> None:
    names, err = command("a red car", "--num-images", "2", "--seed", "12")
    assert names == ["a-red-car-12.png", "a-red-car-13.png"]
    first, last = err.splitlines()
    assert first == "seeds 12 to 13, 2 steps"
    number = r"\d+\.?\d*(e-\d+)?"
    assert re.fullmatch(
        rf"2 pictures in {number} s: {number} to load, {number} to draw \({number} s/step\)", last
    )


def test_the_process_ends_well(folder: Path, tmp_path: Path) -> None:
    argv = ["a", "--model", str(folder), "--steps", "1", "--seed", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "ldm.cli.generate", *argv],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "a-2.png\n")
    assert done.stderr.startswith("seed 2, 1 step\n1 picture in ")
    assert Image.open(tmp_path / "a-2.png").size == (64, 64)


def test_quiet(command: Command) -> None:
    names, err = command("long " * 90, "--seed", "1", "--quiet", "-o", "a.png")
    assert (names, err) == (["a.png"], "")


def test_random_seeds_are_told(command: Command) -> None:
    seeds = set()
    for argv in ([], ["--seed", "-1"]):
        names, err = command("a", *argv, "--steps", "1")
        seed = re.match(r"seed (\d+), ", err).group(1)
        assert names == [f"a-{seed}.png"]
        assert parse_parameters(read_parameters(names[0]))["Seed"] == seed
        seeds.add(seed)
    assert len(seeds) == 2


def test_strength_is_told_before_the_run(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    told = []
    forward = UNet.forward
    monkeypatch.setattr(
        UNet, "forward", lambda *a, **b: told.append(capsys.readouterr().err) or forward(*a, **b)
    )
    noise(64, 64).save("start.png")
    command("a", "--image", "start.png", "--steps", "50", "--seed", "1")
    assert told[0] == "seed 1, 64x64, strength 0.8: 40 of 50 steps\n"
    assert len(told) == 40


def test_progress_on_a_terminal(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    err = command("a", "--steps", "30")[1]
    bars = re.findall(r"\r *(\d+)%\|.*?\| (\d+)/30 \[\d\d:\d\d<[\d:?]+, *(\S+)\]", err)
    assert ("0", "0", "?s/step") in bars
    assert all(speed.endswith("s/step") for *_, speed in bars)
    assert "\r" not in err.splitlines()[-1]  # the bar is gone, the summary is below


# What is written into the file


def test_parameters(command: Command, folder: Path) -> None:
    noise(64, 64).save("start.png")
    prompt, negative = 'a "red" car,\nwith: colons 🚗', "blue, two\nlines"
    argv = ["-i", "start.png", "--strength", "0.65", "-n", negative, "--steps", "7", "-g", "3.3"]
    command(
        prompt, *argv, "--sampler", "euler_karras", "--clip-skip", "2", "--seed", "9", "-o", "a.png"
    )
    assert parse_parameters(read_parameters("a.png")) == {
        "Prompt": prompt,
        "Negative prompt": negative,
        "Steps": "7",
        "Sampler": "Euler",
        "Schedule type": "Karras",
        "CFG scale": "3.3",
        "Seed": "9",
        "Size": "64x64",
        "Model": folder.name,
        "Denoising strength": "0.65",
        "Clip skip": "2",
        "RNG": "CPU",
        "Version": f"ldm {__version__}",
    }


def test_parameters_of_defaults(command: Command) -> None:
    command("a", "--seed", "9", "-o", "a.png", "--sampler", "ddim", "--eta", "0.5", "-H", "72")
    written = parse_parameters(read_parameters("a.png"))
    assert written.items() >= {
        "Negative prompt": "",
        "Steps": "2",
        "Sampler": "DDIM",
        "Schedule type": "Automatic",
        "CFG scale": "7.5",
        "Size": "64x72",
        "Eta": "0.5",
    }.items()  # fmt: skip
    assert not {"Clip skip", "Denoising strength"} & set(written)


# Help


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_is_light(flag: str) -> None:
    """Neither PyTorch nor anything else that takes time is imported."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(sorted({m.split('.')[0] for m in sys.modules})))\n"
        f"sys.argv = ['ldm-generate', {flag!r}]\n"
        "from ldm.cli.generate import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    text, modules = done.stdout.rsplit("[", 1)
    loaded = set(re.findall(r"'(\w+)'", modules))
    outside = {name for name in loaded if name not in sys.stdlib_module_names} - {"ldm"}
    assert not outside & {"torch", "numpy", "PIL", "tokenizers", "tqdm", "safetensors", "einops"}
    if flag == "--version":
        assert text == f"ldm {__version__}\n"
    else:
        assert "usage: ldm-generate" in text
        assert "0 done, 1 failed, 2 wrong arguments, 130 stopped" in " ".join(text.split())


def test_loading_does_not_import_compilers(folder: Path) -> None:
    """torch._dynamo and sympy take 2 s and 70 MB; PyTorch's initialisers on "meta" import them."""
    code = (
        "import sys, torch\n"
        "from ldm import Pipeline\n"
        f"Pipeline.from_pretrained({str(folder)!r})('a', num_inference_steps=1)\n"
        "print({'sympy', 'torch._dynamo', 'torch._inductor'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_reader_that_stops_listening() -> None:
    """``ldm-generate --list-samplers | head -0`` is quiet."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ldm.cli.generate", "--list-samplers"]
    with os.fdopen(write, "w") as pipe:
        result = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert result.stderr == ""
    assert result.returncode == 141


def test_the_package_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "ldm", "generate", "--seed"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "ldm generate --help explains the arguments" in result.stderr


def test_list_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a prompt, and without PyTorch."""
    with pytest.raises(SystemExit) as stopped:
        main(["--list-samplers"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for key, row in SAMPLERS.items():
        assert f"\n{key} " in f"\n{printed}" and row.label in printed
        assert row.class_name is None or row.class_name in printed
    for key, schedule in SCHEDULES.items():
        assert f"\n{key} " in printed and schedule.label in printed
    code = (
        "import sys; from ldm.cli.generate import main\n"
        "try: main(['--list-samplers'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
