"""A careless user of ``ldm-generate``: one clear line, the right exit code, no file written."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import ldm.loading.folder
import ldm.pipeline
from ldm.cli.common import CLOSED, FAILED, INTERRUPTED, USAGE
from ldm.cli.generate import main
from ldm.images import load_image
from ldm.unet import UNet
from tests.helpers.files import names

ROOT = Path(__file__).parents[2]
UNET = "unet/diffusion_pytorch_model.safetensors"


class Command:
    """``ldm-generate`` in an empty folder, which must stay as it is when the command fails."""

    def __init__(self, model: Path, capsys: pytest.CaptureFixture) -> None:
        self.model, self.capsys = model, capsys

    def __call__(self, *argv: str, model: str | None = None) -> int:
        try:
            return main(["--steps", "2", "--model", model or str(self.model), *argv])
        except SystemExit as stop:  # argparse
            return stop.code

    def fails(self, code: int, message: str, *argv: str, model: str | None = None) -> None:
        """It fails with one line, after the one that tells the seed if drawing had begun."""
        before = contents(Path())
        assert self(*argv, model=model) == code
        out, err = self.capsys.readouterr()
        *told, error = err.splitlines()
        assert error.startswith("error: ")
        assert message in error
        assert [line for line in told if not line.startswith("seed ")] == []
        assert out == ""
        assert contents(Path()) == before


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file there, the hidden ones and their bytes too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


@pytest.fixture
def command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(folder, capsys)


# Arguments


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--strength", "1.5", "-i", "x.png"], "strength is 1.5; it must be in [0, 1]"),
        (["--strength", "-0.1", "-i", "x.png"], "strength is -0.1"),
        (["--strength", "nan", "-i", "x.png"], "strength is nan"),
        (["--strength", "0.5"], "--strength says how much of an --image to redraw"),
        (
            ["--strength", "much", "-i", "x.png"],
            "invalid float value: 'much'",
        ),
        (["--steps", "0"], "--num-inference-steps is 0; it must be at least 1"),
        (["--steps", "-3"], "--num-inference-steps is -3"),
        (["--steps", "2.5"], "invalid int value: '2.5'"),
        (["--width", "0"], "--width is 0; it must be at least 1"),
        (["--height", "-8"], "--height is -8"),
        (["--num-images", "0"], "--num-images is 0; it must be at least 1"),
        (["--num-images", "1000000000"], "these are 1000000000 pictures; one command draws at"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--seed", "-2"], "--seed is -2; it must be in [0, 2^63 - 2], or -1 for a random one"),
        (["--seed", str(2**63)], "--seed is 9223372036854775808"),
        (["--seed", str(2**63 - 3), "--num-images", "4"], "it must be in [0, 2^63 - 5]"),
        (["--seed", "1e5"], "argument -s/--seed: invalid int value: '1e5'"),
        (["--sampler", "magic"], "sampler is 'magic'; expected one of ddpm, ddim"),
        (["--sampler", "eular"], "sampler is 'eular'; did you mean 'euler'"),
        (["--schedule", "caras"], "schedule is 'caras'; did you mean 'karras'"),
        (["--sampler", "pndm_karras"], "schedule 'karras' does not suit sampler 'pndm'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--model", ""], "argument -m/--model: it is empty; give a value, or leave the option"),
        (["--image", ""], "argument -i/--image/--init-img: it is empty"),
        (["--output", ""], "argument -o/--output: it is empty"),
        (["--device", ""], "argument --device: it is empty"),
        (["--magic"], "unrecognized arguments: --magic"),
        (["--num-inf", "3"], "unrecognized arguments: --num-inf"),
        (["--seed"], "argument -s/--seed: expected one argument"),
    ],
)
def test_arguments_that_are_refused_before_anything_is_loaded(
    command: Command, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.delattr(ldm.pipeline.Pipeline, "from_pretrained")
    command.fails(USAGE, message, "a", *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-W", "7"], "width is 7; it must be a positive multiple of 8"),
        (["-H", "100000"], "the size is 64x100000; a side may have"),
        (["-W", "80000", "-H", "80000"], "80000x80000 is 6,400,000,000 pixels; at most"),
        (["--steps", "100000"], "num_inference_steps is 100000; it must be at least 1 and fit"),
        (["-g", "nan"], "guidance_scale is nan"),
        (["--eta", "2", "--sampler", "ddim"], "eta is 2.0; it must be in [0, 1]"),
        (["--eta", "0.5", "--sampler", "euler"], "sampler 'euler' has no eta"),
        (["--clip-skip", "9"], "clip_skip"),
        (["--clip-skip", "0"], "--clip-skip is 0; it must be at least 1"),
        (["--device", "nothing"], "device is 'nothing', which does not work here"),
        (["--dtype", "float16", "--device", "cpu"], "dtype is float16, which CPUs compute very"),
        (["-n", "half \udcff"], "it must be text that is valid Unicode"),
    ],
)
def test_arguments_that_the_model_refuses(command: Command, argv: list[str], message: str) -> None:
    command.fails(USAGE, message, "a", *argv)


def test_cuda_where_there_is_none(command: Command) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command.fails(USAGE, "device is 'cuda', which does not work here", "a", "--device", "cuda")


def test_not_enough_memory(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object, **__: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(UNet, "forward", forward)
    command.fails(FAILED, "not enough memory (RuntimeError: ", "a")


def test_debug_shows_where(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(UNet, "forward", lambda *_, **__: 1 / 0)
    command.fails(FAILED, "ZeroDivisionError: division by zero (unexpected: --debug shows", "a")
    assert command("a", "--debug") == FAILED
    err = capsys.readouterr().err
    assert "Traceback" in err and "1 / 0" in err
    assert err.splitlines()[-1].startswith("error: ZeroDivisionError")


# Files to write


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/a.png", "nowhere is not a folder; create it, or choose another"),
        ("a", "a does not end in a known format; use .png, .jpg or .webp"),
        ("a.gif", "a.gif does not end in a known format"),
        (".png", ".png does not end in a known format"),
        ("file.txt/a.png", "file.txt is not a folder"),
        ("file.txt/", "the folder file.txt cannot be made (File exists); choose another --output"),
        ("file.txt/a/", "the folder file.txt/a cannot be made (Not a directory)"),
        ("x" * 300 + ".png", ""),  # as the system says it
    ],
)
@pytest.mark.parametrize("count", ["1", "2"])
def test_output_that_cannot_be_written(
    command: Command, monkeypatch: pytest.MonkeyPatch, output: str, message: str, count: str
) -> None:
    """Told before the model is loaded."""
    monkeypatch.delattr(ldm.pipeline.Pipeline, "from_pretrained")
    Path("file.txt").write_text("mine")
    command.fails(FAILED, message, "a", "--output", output, "--num-images", count)


@pytest.mark.parametrize("argv", [[], ["-o", "sub/a.png"]])
def test_read_only_folder(
    command: Command, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.delattr(ldm.pipeline.Pipeline, "from_pretrained")
    Path("sub").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions do not bind root
    command.fails(FAILED, "is read-only; choose another folder for a", "a", *argv)


@pytest.mark.parametrize(
    ("argv", "there"),
    [
        (["-o", "a.png"], "a.png"),
        (["-o", "a.png", "--num-images", "3"], "a-3.png"),
        (["-o", "a.png", "--num-images", "3", "--grid"], "a.png"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_nothing_is_overwritten(
    command: Command, monkeypatch: pytest.MonkeyPatch, argv: list[str], there: str, kind: str
) -> None:
    """Found out before the model is loaded."""
    monkeypatch.delattr(ldm.pipeline.Pipeline, "from_pretrained")
    if kind == "file":
        Path(there).write_text("mine")
    else:
        Path(there).symlink_to("nothing")
    error = f"{there} already exists; choose another --output, or add --force"
    command.fails(FAILED, error, "a car", *argv)
    assert not Path("nothing").exists()


def test_a_file_that_appears_while_drawing(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    forward = UNet.forward
    monkeypatch.setattr(
        UNet, "forward", lambda *a, **b: Path("a.png").write_text("theirs") and forward(*a, **b)
    )
    assert command("a", "-o", "a.png") == FAILED
    assert "a.png already exists" in capsys.readouterr().err
    assert Path("a.png").read_text() == "theirs"
    assert names() == ["a.png"]


def test_force_overwrites(command: Command) -> None:
    Path("a.png").write_text("mine")
    assert command("a", "-o", "a.png", "--force") == 0
    assert Image.open("a.png").size == (64, 64)


def test_disk_full(command: Command) -> None:
    """A real write that stops halfway: the process may not write more than 2000 bytes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        command.fails(FAILED, "cannot write a.png: File too large", "a", "-o", "a.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def after(calls: int, act: Callable[[], object], function: Callable) -> Callable:
    """A function that does something else from its call number `calls` + 1 on."""
    counted: list[int] = []

    def call(*arguments: object, **named: object) -> object:
        counted.append(1)
        return act() if len(counted) > calls else function(*arguments, **named)

    return call


def test_what_was_saved_before_an_error_stays(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(UNet, "forward", after(2, lambda: 1 / 0, UNet.forward))
    assert command("a", "-o", "a.png", "--num-images", "4", "--batch-size", "2") == FAILED
    out, err = capsys.readouterr()
    assert out.split() == names() == ["a-1.png", "a-2.png"]
    assert err.splitlines()[-1].startswith("error: ZeroDivisionError")


# Standard output


@pytest.mark.parametrize("kind", ["nobody reads", "full", "closed"])
def test_standard_output_that_cannot_be_written(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, kind: str
) -> None:
    """The picture is saved all the same, and Python does not complain when it ends."""
    if kind == "closed":
        stdout = None
    elif kind == "full":
        stdout = Path("/dev/full").open("w")  # noqa: SIM115 (the command writes to it below)
    else:
        reading, writing = os.pipe()
        os.close(reading)
        stdout = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    code = command("a", "--num-images", "2", "--batch-size", "1", "--seed", "1")
    if stdout is None:
        assert code == 0
        assert names() == ["a-1.png", "a-2.png"]
    else:
        stdout.close()  # as Python does in the end; it must not fail
        assert code == (FAILED if kind == "full" else CLOSED)
        assert names() == ["a-1.png"]
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert (errors == []) == (kind == "nobody reads")
        stopped = "error: stopped after a-1.png: standard output cannot be written"
        assert all(line.startswith(stopped) for line in errors)


def test_closed_standard_error(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert command("a", "-o", "a.png") == 0


# Ctrl-C


@pytest.fixture
def ctrl_c() -> Iterator[Callable[..., None]]:
    """Presses Ctrl-C; also where the tests run in the background, which ignores it."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda *_, **__: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, old)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (ldm.loading.folder, "load_component"),
        (ldm.loading.folder.CLIPTokenizer, "from_pretrained"),
        (UNet, "forward"),
        (ldm.loading.model.AutoencoderKL, "decode"),
        (Image.Image, "save"),
        (os, "fsync"),
        (os, "link"),
    ],
)
def test_interrupt(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    ctrl_c: Callable[..., None],
    where: object,
    name: str,
) -> None:
    monkeypatch.setattr(where, name, ctrl_c)
    assert command("a", "-o", "a.png") == INTERRUPTED
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith("seed ")] == ["stopped"]
    assert names() == []


def test_interrupt_between_pictures(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    ctrl_c: Callable[..., None],
) -> None:
    monkeypatch.setattr(UNet, "forward", after(2, ctrl_c, UNet.forward))
    argv = ["--num-images", "2", "--batch-size", "1", "-o", "a.png"]
    assert command("a", *argv) == INTERRUPTED
    assert capsys.readouterr().out == "a-1.png\n"
    assert names() == ["a-1.png"]
    Image.open("a-1.png").load()


@pytest.mark.parametrize("moment", ["torch", "ldm.unet", "drawing"])
def test_interrupt_of_the_process(command: Command, tmp_path: Path, moment: str) -> None:
    """As a terminal does it, while it imports and while it draws."""
    code = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.path.insert(0, {str(ROOT)!r})
from ldm.cli.generate import main
from ldm.images import load_image
sys.exit(main(["a", "--model", {str(command.model)!r}, "--steps", "900"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if moment == "drawing":
        assert process.stderr.readline().startswith("seed ")
        process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "stopped\n")
    assert process.returncode == INTERRUPTED
    assert names(tmp_path) == []


# Images to start from


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "missing.png does not exist; check the path"),
        ("cut.png", "cannot read cut.png: image file is truncated"),
        ("text.png", "text.png is not an image; give a PNG, JPEG or WebP file"),
        ("empty.png", "empty.png is not an image"),
        ("folder.png", "folder.png is a folder; give an image file"),
        ("huge.png", "huge.png has more than 89 megapixels; scale it down"),
    ],
)
def test_images_that_cannot_be_read(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    picture: Image.Image,
    name: str,
    message: str,
) -> None:
    """Told before the model is loaded."""
    monkeypatch.delattr(ldm.pipeline.Pipeline, "from_pretrained")
    path = Path(name)
    if name == "cut.png":
        picture.save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif name == "text.png":
        path.write_text("not a picture")
    elif name == "empty.png":
        path.touch()
    elif name == "folder.png":
        path.mkdir()
    elif name == "huge.png":
        Image.new("1", (12_000, 12_000)).save(path)
    command.fails(FAILED, message, "a", "--image", name)


@pytest.mark.parametrize(
    "kind", ["alpha", "palette", "grey", "bits", "CMYK", "turned", "animated", "16 bits"]
)
def test_images_of_all_kinds(command: Command, picture: Image.Image, kind: str) -> None:
    """They are drawn from, as the RGB picture that one sees is drawn from (strength 0 keeps it)."""
    name, options, size = "start.png", {}, (64, 40)
    image = picture
    if kind == "alpha":
        image = picture.convert("RGBA")
    elif kind == "palette":
        image = picture.quantize(200)
    elif kind == "grey":
        image = picture.convert("L")
    elif kind == "bits":
        image = picture.convert("1")
    elif kind == "CMYK":
        name, image = "start.jpg", picture.convert("CMYK")
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        name, options, size = "start.jpg", {"exif": exif}, (40, 64)
    elif kind == "animated":
        name, options = "start.gif", {"save_all": True, "append_images": [picture.rotate(180)]}
    elif kind == "16 bits":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(grey)
    image.save(name, **options)
    assert command("a", "--image", name, "--strength", "0", "-o", "a.png") == 0
    drawn, seen = Image.open("a.png"), load_image(name)
    assert drawn.size == seen.size == size
    assert (np.asarray(drawn) == np.asarray(seen)).all()


# Models


def tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the tensors of the U-Net."""

    def edit(model: Path) -> None:
        values = load_file(model / UNET)
        change(values)
        save_file(values, model / UNET, {"format": "pt"})

    return edit


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda m: (m / "model_index.json").unlink(), "model_index.json does not exist"),
    "no weights": (lambda m: (m / UNET).unlink(), "unet holds no weights: looked for"),
    "no config": (lambda m: (m / "vae/config.json").unlink(), "vae/config.json does not exist"),
    "no tokenizer": (lambda m: shutil.rmtree(m / "tokenizer"), "tokenizer/vocab.json does not"),
    "no scheduler": (lambda m: shutil.rmtree(m / "scheduler"), "scheduler_config.json does not"),
    "no text encoder": (lambda m: shutil.rmtree(m / "text_encoder"), "text_encoder does not exist"),
    "empty weights": (
        lambda m: (m / UNET).write_bytes(b""),
        "is truncated or not a .safetensors file",
    ),
    "truncated weights": (
        lambda m: (m / UNET).write_bytes((m / UNET).read_bytes()[:-1000]),
        f"{UNET} is truncated or not a .safetensors file",
    ),
    "truncated config": (
        lambda m: (m / "unet/config.json").write_text('{"in_channels"'),
        "unet/config.json as JSON",
    ),
    "wrong shape": (
        tensors(lambda t: t.update({"conv_in.weight": t["conv_in.weight"][:, :3].contiguous()})),
        "has other shapes: conv_in.weight (32, 3, 3, 3) instead of (32, 4, 3, 3)",
    ),
    "missing tensor": (tensors(lambda t: t.pop("conv_in.bias")), "lacks conv_in.bias"),
    "NaN": (
        tensors(lambda t: t["conv_in.weight"].fill_(float("nan"))),
        "conv_in.weight of the unet holds NaN or infinite weights; get the model again",
    ),
    "other sampler": (
        lambda m: (m / "scheduler/scheduler_config.json").write_text('{"_class_name": "X"}'),
        "_class_name is 'X', which is not supported; choose a sampler with --sampler",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_broken_models(
    command: Command, tmp_path_factory: pytest.TempPathFactory, case: str
) -> None:
    model = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(command.model, model)
    change, message = MODELS[case]
    change(model)
    command.fails(FAILED, message, "a", model=str(model))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "./missing",
            "./missing does not exist; give a diffusers folder, a single file or a hub id",
        ),
        ("missing", "missing does not exist; give a diffusers folder, a single file or a hub id"),
        ("owner/name", "there is no folder owner/name, nor a model owner/name in the hub's cache"),
        ("file.ckpt", "file.ckpt is truncated or not a weight file"),
        (".", "model_index.json does not exist; a model folder needs it"),
    ],
)
def test_models_that_are_not_there(
    command: Command, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("file.ckpt").write_text("weights")
    command.fails(FAILED, message, "a", model=model)


@pytest.mark.parametrize("prompt", ["", "  ", "\n", '"', "🚗", "\x1b[31m", "long " * 400])
def test_odd_prompts_are_drawn(command: Command, prompt: str) -> None:
    assert command(prompt, "-o", "a.png") == 0
    assert Image.open("a.png").size == (64, 64)
