"""``--from picture.png`` draws the picture again, and says what it cannot do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm import Pipeline, __version__
from ldm.cli.common import FAILED, USAGE
from ldm.cli.fields import recorded
from ldm.cli.generate import main
from ldm.cli.options import parser
from ldm.cli.replay import AROUND, IN_ANOTHER_FORM, LOADING
from ldm.errors import ImageError
from ldm.images import read_parameters, read_settings, save_image
from ldm.images.generation_info import (
    GenerationInfo,
    from_settings,
    from_text,
    read_generation_info,
)
from ldm.images.metadata import parse_parameters

Command = Callable[..., list[str]]

# As the web UI writes it (PEERS.md, 3.4).
WEB_UI = """a red car,
on a road
Negative prompt: ugly, blurry
and grey
Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 7, Size: 72x48, \
Model hash: 6ce0161689, Model: {model}, Clip skip: 2, RNG: CPU, Version: v1.10.1"""


@pytest.fixture
def command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Command:
    """Run it in an empty folder with the small model → lines of stderr but for the progress."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).save("start.png")

    def run(*argv: str, code: int = 0, model: str | None = str(folder)) -> list[str]:
        chosen = [] if model is None else ["--model", model]
        assert main([*chosen, *argv]) == code
        err = capsys.readouterr().err.splitlines()
        return [line for line in err if line.startswith(("warning: ", "error: "))]

    return run


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


SETS = {
    "all": [
        *['a "red" car,\n with:  two lines  🚗', "-n", "--dashes, and\nlines ", "--seed", "9"],
        *["-g", "3.3000000000000003", "--sampler", "dpmpp_2m_karras", "--clip-skip", "2"],
        *["-W", "72", "-H", "48"],
    ],
    "dtype": [
        *["", "--seed", "0", "--sampler", "ddim", "--eta", "0.7", "--dtype", "bfloat16"],
        *["--prediction-type", "v_prediction"],
    ],
    "image": ["-x y", "-i", "start.png", "--strength", "0.55", "--steps", "6"],
}


@pytest.mark.parametrize(
    ("name", "ending"), [*((name, "png") for name in SETS), ("all", "jpg"), ("all", "webp")]
)
def test_the_same_picture(command: Command, name: str, ending: str) -> None:
    command("--steps", "2", *SETS[name], "-o", f"a.{ending}")
    image = ["-i", "start.png"] if name == "image" else []
    assert command("--from", f"a.{ending}", *image, "-o", f"b.{ending}") == []
    assert Path(f"a.{ending}").read_bytes() == Path(f"b.{ending}").read_bytes()


def test_a_picture_of_a_batch(command: Command) -> None:
    """Drawn as a picture of as many, and so the same to the bit."""
    command("a cat", "a dog", "--num-images", "2", "--seed", "4", "--steps", "2", "-o", "a.png")
    settings = read_settings("a-3.png")
    assert (settings["batch"], settings["arguments"]["seed"]) == ([4, 2], 6)
    command("--from", "a-3.png", "-o", "b.png")
    assert Path("a-3.png").read_bytes() == Path("b.png").read_bytes()
    command("--from", "a-3.png", "-o", "c.png", "--batch-size", "1")  # alone: sooner done
    assert read_settings("c.png")["batch"] == [1, 0]
    assert np.abs(pixels("a-3.png").astype(int) - pixels("c.png")).max() <= 1


def test_what_is_given_goes_first(command: Command) -> None:
    command("a cat", "-n", "grey", "--seed", "4", "--steps", "2", "-g", "3", "-o", "a.png")
    command("--from", "a.png", "a dog", "-g", "5", "-o", "b.png")
    command("a dog", "-n", "grey", "--seed", "4", "--steps", "2", "-g", "5", "-o", "want.png")
    assert Path("b.png").read_bytes() == Path("want.png").read_bytes()
    command("--from", "a.png", "--num-images", "2", "-o", "c.png")
    assert [read_settings(f"c-{n}.png")["arguments"]["seed"] for n in (1, 2)] == [4, 5]


def test_grid(command: Command) -> None:
    command(
        "a",
        "--num-images",
        "3",
        "--seed",
        "4",
        "--steps",
        "1",
        "--grid",
        "--no-labels",
        "-o",
        "grid.png",
    )
    assert parse_parameters(read_parameters("grid.png"))["Grid"] == "2x2"
    (told,) = command("--from", "grid.png", "-o", "b.png")
    assert told == "warning: grid.png shows several pictures; the first is drawn again"
    cell = pixels("grid.png")[:64, :64]
    assert np.abs(cell.astype(int) - pixels("b.png")).max() <= 1
    assert cell.std() > 20


def test_in_python(command: Command, folder: Path) -> None:
    command("a cat", "--seed", "4", "--steps", "2", "--dtype", "bfloat16", "-o", "a.png")
    info = read_generation_info("a.png")
    assert info.model == folder.name
    pipe = Pipeline.from_pretrained(folder, **info.loading).optimize()  # as the command does
    assert (np.asarray(pipe(**info.arguments).images[0]) == pixels("a.png")).all()


def test_every_option_is_kept_or_does_not_matter() -> None:
    """Whoever adds an option says which, here and in ldm/cli/replay.py."""
    kept = set(vars(parser().parse_args([]))) - AROUND - IN_ANOTHER_FORM
    kept -= {"replay", "templates", "batch_prompts"}
    call = "negative_prompt strength num_inference_steps guidance_scale seed width height"
    call += " sampler schedule eta clip_skip"
    assert kept == set(call.split()) | set(LOADING) | recorded("changed")


# What is not in the file


def test_models(command: Command, folder: Path) -> None:
    command("a", "--seed", "1", "--steps", "1", "-o", "a.png")
    (told,) = command("--from", "a.png", model=None, code=USAGE)
    assert told == (
        f"error: a.png was drawn with the model {folder.name!r}; say with --model where it is"
    )
    Path("other").symlink_to(folder)
    settings = read_settings("a.png") | {"model": "another"}
    save_image(Image.open("a.png"), "b.png", "", settings=settings)
    (told,) = command("--from", "b.png", "-o", "c.png")
    assert told == f"warning: b.png was drawn with the model 'another', not with {folder.name!r}"
    del settings["model"]
    save_image(Image.open("a.png"), "d.png", "", settings=settings)
    (told,) = command("--from", "d.png", "-o", "e.png")
    assert told == f"warning: d.png names no model; {folder.name} is used"
    assert (pixels("c.png") == pixels("a.png")).all()


def test_images(command: Command) -> None:
    command("a", "-i", "start.png", "--seed", "1", "--steps", "2", "-o", "a.png")
    (told,) = command("--from", "a.png", "-o", "b.png", code=USAGE)
    assert told == (
        "error: a.png was drawn from a picture that is not in it; give that with --image"
    )
    Image.open("start.png").save("copy.webp", lossless=True)  # other bytes, the same picture
    assert command("--from", "a.png", "-i", "copy.webp", "-o", "b.png") == []
    assert (pixels("b.png") == pixels("a.png")).all()
    (told,) = command("--from", "a.png", "-i", "a.png", "-o", "c.png")
    assert told.startswith("warning: a.png was drawn from another --image than a.png")


def test_vae_and_embeddings(command: Command, folder: Path) -> None:
    vae = str(folder / "vae")
    command("a", "--vae", vae, "--seed", "1", "--steps", "1", "-o", "a.png")
    settings = read_settings("a.png") | {"embeddings": ["cat-toy"]}
    save_image(Image.open("a.png"), "b.png", "", settings=settings)
    told = command("--from", "b.png", "-o", "c.png")
    assert told == [
        f"warning: b.png was drawn with {name!r}; for the same picture give it with --{option}"
        for name, option in (("vae", "vae"), ("cat-toy", "embedding"))
    ]
    assert command("--from", "a.png", "--vae", vae, "-o", "d.png") == []
    assert Path("d.png").read_bytes() == Path("a.png").read_bytes()


# Text of other programs


def write(path: str, text: str, settings: str | None = None) -> None:
    info = PngInfo()
    info.add_text("parameters", text)
    if settings is not None:
        info.add_text("ldm", settings)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def test_the_web_ui(command: Command, folder: Path) -> None:
    write("web.png", WEB_UI.format(model=folder.name))
    assert command("--from", "web.png", "-o", "a.png") == []
    argv = ["-n", "ugly, blurry\nand grey", "--steps", "3", "--sampler", "dpmpp_2m_karras"]
    sizes = ["-g", "6.5", "--seed", "7", "-W", "72", "-H", "48", "--clip-skip", "2"]
    command("a red car,\non a road", *argv, *sizes, "-o", "want.png")
    assert Path("a.png").read_bytes() == Path("want.png").read_bytes()


def test_what_cannot_be_done_is_told(command: Command, folder: Path) -> None:
    extra = (
        "Denoising strength: 0.4, Hires upscale: 2, ADetailer model: face_yolov8n.pt, "
        'Lora hashes: "a: 1", Version: v1'
    )
    text = f"a\nSteps: 1, Sampler: DPM adaptive, Seed: 1, Size: 8x8, Model: {folder.name}, {extra}"
    write("web.png", text)
    (told,) = command("--from", "web.png", "-o", "a.png")
    assert told == (
        "warning: web.png asks for what is not done here, so the picture will be another: "
        "Sampler DPM adaptive, RNG GPU (our noise is drawn on the CPU), "
        "ADetailer model face_yolov8n.pt"
    )
    assert Image.open("a.png").size == (16, 16)  # the second pass is done


def test_image_to_image_of_the_web_ui() -> None:
    text = "a\nSteps: 9, Seed: 1, CFG scale: 7, Denoising strength: 0.75, RNG: CPU"
    info = from_text(text)
    assert info.arguments["strength"] == 0.75
    assert info.images == {"image": ""}
    assert info.notes == ()


@pytest.mark.parametrize(
    ("label", "schedule", "want"),
    [
        ("DPM++ 2M", "Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M Karras", "", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Automatic", ("dpmpp_2m", "normal")),
        ("Euler a", "SGM Uniform", ("euler_a", "sgm_uniform")),
        ("Euler A", "", ("euler_a", "normal")),
    ],
)
def test_names_of_samplers(label: str, schedule: str, want: tuple[str, str]) -> None:
    told = f"Schedule type: {schedule}, " if schedule else ""
    info = from_text(f"a\nSteps: 1, Sampler: {label}, {told}Seed: 1, RNG: CPU, Size: 8x8")
    assert (info.arguments["sampler"], info.arguments["schedule"]) == want
    assert not info.notes


def test_samplers_that_are_not_known() -> None:
    for label in ("Nonsense", "Restart"):
        info = from_text(f"a\nSteps: 1, Sampler: {label}, Seed: 1, RNG: CPU, Size: 8x8")
        assert info.notes == (f"Sampler {label}",)
        assert "sampler" not in info.arguments


# Broken files

GOOD = {"ldm": __version__, "arguments": {"prompt": "a", "seed": 3}, "model": "m", "batch": [1, 0]}


def broken(**changes: Any) -> str:
    return json.dumps(GOOD | changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (json.dumps(GOOD)[:50], "its settings are not JSON (Unterminated string"),
        ("[" * 100_000, "its settings are not JSON ("),
        ("7" * 9999, "its settings are"),
        ("null", "its settings are 'null'…, no object that begins with 'ldm'"),
        ("[1, 2]", "no object that begins with 'ldm'"),
        ("\0\x01binary", "its settings are not JSON"),
        (broken(arguments=[1]), "its setting arguments is [1]; expected a dict"),
        (broken(arguments={"seed": {}}), "its setting batch is [1, 0] with the seed {}"),
        (broken(arguments={"eta": {}}), "its setting eta is {}; expected a text or number"),
        (broken(arguments={"eta": [1]}), "its setting eta is [1]; expected a text or number"),
        (broken(arguments={"eta": "much"}), "argument --eta: invalid float value: 'much'"),
        (broken(arguments={"seed": 1, "sampler": "magic"}), "sampler is 'magic'"),
        (broken(arguments={"clip_skip": 1.5}), "invalid int value: '1.5'"),
        (broken(loading={"dtype": "int3"}), "invalid choice: 'int3'"),
        (broken(model=7), "its setting model is 7; expected a str"),
        (broken(batch=[2, 2]), "its setting batch is [2, 2] with the seed 3"),
        (broken(batch=[8, 4]), "its setting batch is [8, 4] with the seed 3"),
        (broken(batch=[10**9, 1]), "its setting batch is [1000000000, 1]"),
        (broken(batch=[1]), "its setting batch is [1] with"),
        (broken(batch="12"), "its setting batch is '12'; expected a list"),
        (broken(images=["x"]), "its setting images is ['x']; expected a dict"),
    ],
)
def test_broken_settings(
    command: Command, monkeypatch: pytest.MonkeyPatch, settings: str, message: str
) -> None:
    monkeypatch.delattr(Pipeline, "from_pretrained")
    write("a.png", "a\nSteps: 1, Seed: 2, Size: 8x8", settings)
    (told,) = command("--from", "a.png", code=FAILED)
    assert "a.png: " in told and message in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nSteps: x, Seed: 1, Size: 8x8", "its Steps is 'x'; expected a whole number"),
        ("a\nSteps: 1, Seed: 1.5, Size: 8x8", "its Seed is '1.5'; expected a whole number"),
        ("a\nSteps: 1, Seed: 1, CFG scale: many", "its CFG scale is 'many'; expected a number"),
        ("a\nSteps: 1, Seed: 1, Size: big", "its Size is 'big'; expected one such as 512x768"),
        ("a\nSteps: 1, Seed: " + "7" * 5000 + ", Size: 8x8", "its Seed is '777"),
    ],
)
def test_broken_text(command: Command, text: str, message: str) -> None:
    write("a.png", text)
    (told,) = command("--from", "a.png", code=FAILED)
    assert told.startswith(f"error: a.png: {message}")


def test_files_that_do_not_say(command: Command) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    (told,) = command("--from", "plain.png", code=FAILED)
    assert told.startswith("error: plain.png: it does not say how it was made; only what ldm-")
    Path("text.png").write_text("a\nSteps: 1")
    (told,) = command("--from", "text.png", code=FAILED)
    assert told == "error: text.png is not an image; give a PNG, JPEG or WebP file"
    (told,) = command("--from", "none.png", code=FAILED)
    assert told == "error: none.png does not exist; check the path"


def test_values_that_no_model_could_draw(command: Command, folder: Path) -> None:
    write("a.png", "", broken(arguments={"seed": 1, "num_inference_steps": -1}, model=folder.name))
    (told,) = command("--from", "a.png", code=USAGE)
    assert told == "error: --num-inference-steps is -1; it must be at least 1"


def test_settings_of_a_newer_version(command: Command, folder: Path) -> None:
    arguments = {"prompt": "a", "seed": 1, "num_inference_steps": 1, "magic": 3, "output": "x"}
    write("a.png", "", broken(arguments=arguments, model=folder.name))
    (told,) = command("--from", "a.png", "-o", "b.png")
    assert told == (
        "warning: a.png was drawn with what this version of ldm does not know: magic, output"
    )
    assert not Path("x").exists()


letters = st.text('ab12:,".\n', max_size=5)
values = st.none() | st.booleans() | st.integers() | st.floats() | letters
anything = values | st.lists(values, max_size=3) | st.dictionaries(letters, values, max_size=2)
PARTS = ["arguments", "loading", "model", "vae", "embeddings", "images", "batch", "grid"]


@hypothesis(deadline=None)
@given(settings=st.dictionaries(st.sampled_from(PARTS), anything))
def test_any_settings(settings: dict[str, Any]) -> None:
    try:
        info = from_settings(settings)
    except ValueError as error:
        assert str(error).startswith("its setting ")
    else:
        assert isinstance(info, GenerationInfo)


@hypothesis(deadline=None)
@given(prompt=letters, numbers=st.lists(letters, min_size=4, max_size=4))
def test_any_text(prompt: str, numbers: list[str]) -> None:
    named = zip(["Steps", "Seed", "Size", "Eta"], numbers, strict=True)
    text = f"{prompt}\n" + ", ".join(f"{name}: {value}" for name, value in named)
    try:
        assert isinstance(from_text(text), GenerationInfo)
    except ValueError as error:
        assert str(error).startswith("its ")


@pytest.mark.parametrize("cut", [20, 60, 200, -30])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_files_that_are_cut(tmp_path: Path, ending: str, cut: int) -> None:
    path = tmp_path / f"a.{ending}"
    save_image(Image.new("RGB", (64, 64)), path, "a\nSteps: 1, Seed: 1, Size: 8x8", settings=GOOD)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ImageError, match=f"a.{ending}"):
        read_generation_info(path)


def test_a_jpeg_without_room(tmp_path: Path) -> None:
    """The web UI's text goes first."""
    path = tmp_path / "a.jpg"
    prompt = "x" * 25_000
    text = f"{prompt}\nSteps: 1, Seed: 1, Size: 8x8"
    with pytest.warns(UserWarning, match="a JPEG holds 64 KiB of metadata"):
        save_image(Image.new("RGB", (8, 8)), path, text, settings=GOOD | {"more": prompt})
    assert read_settings(path) is None
    assert read_generation_info(path).arguments["prompt"] == prompt


def test_descriptions_of_other_programs(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x010E] = '{"prompt": "of another program"}'
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    assert read_settings(path) is None
