"""The trainer of the built-in model: its supply of pictures, its runs, its pack."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ldm.checkpoints.folder import load_component
from ldm.clip import CLIPTextEncoder
from ldm.config import UNetConfig
from ldm.config.generation import Defaults
from ldm.errors import TrainingError
from ldm.training import clock
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from tests.helpers.networks import TINY_BUILTIN
from tools.builtin_model import compose, pack, parts, supply, train
from tools.builtin_model.icons.nouns import Noun, Subject
from tools.builtin_model.icons.sources import BuildError, Icon, Package
from tools.builtin_model.reservoir import Reservoir

ROOT = Path(__file__).parents[2]


class Blocks:
    """Stands in for the worker processes: pictures of one colour, the same tokens."""

    def __init__(self, *_: object) -> None:
        self.count = 0

    def __enter__(self) -> "Blocks":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def take(self, timeout: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        self.count += 1
        pixels = np.full((4, 32, 32, 3), self.count % 256, np.uint8)
        return pixels, np.full((4, 77), 49407, np.uint16)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a run of a few steps on pictures that need no composing."""
    network = tmp_path / "unet.json"
    network.write_text(json.dumps(TINY_BUILTIN))
    monkeypatch.setattr(train, "Supply", Blocks)
    monkeypatch.setattr(train, "SIZE", 32)
    monkeypatch.setattr(train, "BLOCK", 4)
    monkeypatch.setattr(train, "PROMPTS", ("a red car",))
    monkeypatch.setattr(train, "DEFAULTS", Defaults(num_inference_steps=1))
    monkeypatch.setattr(train, "SAMPLINGS", 1)
    monkeypatch.setattr(train, "LOG_SECONDS", 0.2)
    ticks = count()  # time goes by with each look at the clock, however slow the machine is
    slow = SimpleNamespace(monotonic=lambda: 0.05 * next(ticks))
    for module in (train, clock):
        monkeypatch.setattr(module, "time", slow)
    sizes = ["--batch-size", "4", "--capacity", "16", "--first", "8", "--reuse", "1"]
    folders = ["--output", str(tmp_path / "run"), "--weights", str(ROOT / "weights")]
    return ["--minutes", "0.04", "--network", str(network), *sizes, *folders, "--device", "cpu"]


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_ends_with_its_minutes_and_leaves_a_network(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(command) == 0
    found = rows(capsys)
    assert found[-1]["pictures"] == 4 * found[-1]["step"] > 0
    run = tmp_path / "run"
    about = json.loads((run / "run.json").read_text())
    assert about["pictures"] == found[-1]["pictures"]
    assert about["seconds"] == pytest.approx(2.4, abs=0.5)
    unet = load_component(UNet, run / "unet", torch.float32)
    assert unet.conv_out.weight.abs().max() > 0, "it began with zeros"
    assert (run / "samples.webp").stat().st_size > 0
    assert not (run / "pictures").exists()

    # The same command has nothing left to do, another network is another run.
    assert train.main(command) == 0
    assert json.loads((run / "run.json").read_text())["steps"] == about["steps"]
    Path(command[3]).write_text(json.dumps(TINY_BUILTIN | {"block_out_channels": [32, 64]}))
    assert train.main(command) == 2
    assert "network.block_out_channels was [32, 32], now [32, 64]" in capsys.readouterr().err

    # Its weights begin another run, but not one of another shape.
    start = ["--start", str(run), "--output", str(tmp_path / "next"), "--minutes", "0.01"]
    assert train.main([*command, *start]) == 2
    assert "is (32, 8, 3, 3)" not in (message := capsys.readouterr().err)
    assert str(run / "unet") in message and "down_blocks" in message


def test_a_stopped_run_goes_on_where_it_was(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stops(Blocks):
        def take(self, timeout: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
            if self.count == 3:
                raise KeyboardInterrupt
            return super().take(timeout)

    state = tmp_path / "run" / "checkpoints"
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(train, "Supply", Stops)
    assert train.main(command) == 130
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["steps"] == int(sorted(state.iterdir())[-1].name) > 0
    monkeypatch.setattr(train, "Supply", Blocks)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 60.0)
    assert train.main(command) == 0
    done = json.loads((tmp_path / "run" / "run.json").read_text())
    assert done["steps"] > kept["steps"] and done["pictures"] == 4 * done["steps"]
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(row)["step"] for row in log]
    assert steps == sorted(set(steps))


def test_short_memory_halves_the_batch_and_says_so(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = train.TimedTrainer.train_step

    def short(self: train.TimedTrainer, *arguments: object) -> object:
        if self.batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, *arguments)

    monkeypatch.setattr(train.TimedTrainer, "train_step", short)
    assert train.main(command) == 0
    done = capsys.readouterr()
    assert "from now on batches of 2" in done.err
    last = json.loads(done.out.splitlines()[-1])
    assert last["pictures"] == 2 * last["step"]


def test_the_rate_rises_stays_and_falls_to_nothing(command: list[str]) -> None:
    trainer = train.TimedTrainer(train.parser().parse_args(command))
    peak = trainer.plan.learning_rate

    def rate(share: float) -> float:
        trainer.share = lambda: share  # type: ignore[method-assign]
        return trainer.rate()

    assert rate(0.0) == pytest.approx(peak / train.WARMUP)
    trainer.step = 10 * train.WARMUP
    assert rate(0.4) == rate(train.DECAY_FROM) == peak
    assert rate((1 + train.DECAY_FROM) / 2) == pytest.approx(peak / 2)
    assert rate(1.0) == rate(1.1) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes is 0.0; it must be above 0"),
        (["--minutes", "1", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--minutes", "1", "--start", "nowhere"], "start is 'nowhere', which is no folder"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--weights", str(ROOT / "weights"), "--output", str(tmp_path / "run"), *arguments]
    assert train.main(command) == 2
    assert message in capsys.readouterr().err


# The reservoir and the weights in parts


def test_the_reservoir_keeps_the_latest_pictures() -> None:
    vae = load_component(AutoencoderKL, ROOT / "weights" / "vae", torch.float32)
    folder = ROOT / "weights" / "text_encoder"
    text_encoder = load_component(CLIPTextEncoder, folder, torch.float32)
    empty = torch.full((77,), 49407)
    kept = Reservoir(vae, text_encoder, empty, 32, 4, torch.device("cpu"))
    tokens = np.full((3, 77), 49407, np.uint16)
    tokens[:, 0] = 49406
    for value in (0, 255):
        kept.put(np.full((3, 32, 32, 3), value, np.uint8), tokens)
    assert kept.count == 6
    white = vae.encode(torch.ones(1, 3, 32, 32))
    near = (kept.latents.float() - white).abs().amax((1, 2, 3)) < 0.1 * white.abs().max()
    assert near.tolist() == [True, True, False, True]  # the ring went round: rows 4 and 5 are 0, 1
    latents, contexts = kept.draw(5, caption_dropout=1.0)
    assert latents.shape == (5, 8, 4, 4) and latents.dtype == torch.float32
    assert torch.equal(contexts, kept.empty.expand(5, -1, -1))
    assert not torch.equal(kept.draw(5, caption_dropout=0.0)[1], contexts)


def test_weights_in_parts_are_small_and_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = UNet(UNetConfig.from_dict(TINY_BUILTIN))
    for _ in range(2):  # the second takes the place of the first
        parts.save_in_parts(unet, tmp_path / "unet", torch.float16, part=300_000)
    files = sorted((tmp_path / "unet").glob("*.safetensors"))
    assert len(files) > 1 and all(file.stat().st_size <= 300_000 for file in files)
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]
    back = load_component(UNet, tmp_path / "unet", torch.float32).state_dict()
    assert all(torch.equal(back[k], v.half().float()) for k, v in unet.state_dict().items())


# The supply


def subject(name: str, noun: Noun | None, keeps_colours: bool = False) -> Subject:
    body = '<rect width="10" height="10" fill="#c00"/>'
    return Subject(Icon("noto", name, None, body, (0, 0, 16, 16)), name, noun, keeps_colours)


CAR = Noun("car", ("car",), ("car", "van"), common=True)
SUBJECTS = [
    subject("car", CAR),
    subject("van", CAR),
    subject("drum", Noun("drum", ("drum",), ("drum",))),
    subject("person", None, keeps_colours=True),
]


def test_every_name_is_drawn_as_often_as_others_of_its_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compose.sources, "fetch", lambda package, archives: tmp_path)
    monkeypatch.setattr(compose.nouns, "read_subjects", lambda *_: SUBJECTS[:3])
    monkeypatch.setattr(compose.vocabulary, "read_subjects", lambda *_: SUBJECTS)
    monkeypatch.setattr(compose.split, "held_out_icons", lambda *_: {("noto", "van")})
    vocabulary = compose.read_vocabulary(tmp_path)
    assert vocabulary.names == 3 and vocabulary.held_out == [SUBJECTS[1]]
    total = compose.COMMON + compose.EVERYDAY + compose.OTHER
    wanted = np.array([compose.COMMON, compose.EVERYDAY, compose.OTHER]) / total
    assert vocabulary.odds == pytest.approx(wanted)
    drawn = compose.compose(vocabulary, 32, seed=0, worker=1)
    again = compose.compose(vocabulary, 32, seed=0, worker=1)
    for _ in range(20):
        (picture, caption), (other, text) = next(drawn), next(again)
        assert picture.shape == (32, 32, 3) and caption == text
        assert np.array_equal(picture, other)


def test_a_person_keeps_its_colours_and_is_drawn_alone() -> None:
    person = SUBJECTS[3]
    assert person.fixed and compose.weight(person) == compose.OTHER
    assert compose.shares(person)[2:].tolist() == [0, 0]


@pytest.fixture
def source(tmp_path: Path) -> supply.Source:
    return supply.Source(tmp_path / "npm", ROOT / "weights" / "tokenizer", 32, 0)


def test_a_worker_that_fails_says_why(
    source: supply.Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no npm
    message = r"npm is not installed.*fluent-emoji-1\.2\.7\.tgz"
    with (
        supply.Supply(source, 1, tmp_path / "memory") as pictures,
        pytest.raises(TrainingError, match=message),
    ):
        while pictures.take(timeout=0.1) is None:
            pass
    assert not (tmp_path / "memory").exists()


# The pack


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository of a few files, and archives of one set."""
    root, archives = tmp_path / "repository", tmp_path / "npm"
    (root / "ldm" / "__pycache__").mkdir(parents=True)
    (root / "ldm" / "a.py").write_text("pass\n")
    (root / "ldm" / "__pycache__" / "a.pyc").write_text("")
    (root / "weights" / "vae").mkdir(parents=True)
    (root / "weights" / "vae" / "config.json").write_text("{}")
    archives.mkdir()
    package = Package("@iconify-json/noto", "1.0.0")
    with tarfile.open(archives / package.archive, "w:gz") as tar:
        icons = b'{"icons":{"car":{"body":"1"},"cow":{"body":"2"}},"aliases":{"auto":{}},"width":9}'
        for name, content in (("icons.json", icons), ("chars.json", b"{}"), ("README.md", b"")):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (archives / "resvg_py-0.5.0-any.whl").write_text("")
    for name, value in (
        ("ROOT", root), ("CODE", ("ldm",)), ("WEIGHTS", ("vae",)),
        ("ALL_SETS", {"noto": package}), ("EMOJIBASE", package),
        ("used_icons", lambda archives: {"noto": {"car"}, "": {"car"}}),
    ):  # fmt: skip
        monkeypatch.setattr(pack, name, value)
    for members in ("SET_MEMBERS", "EMOJIBASE_MEMBERS"):
        monkeypatch.setattr(pack, members, ("icons.json",))
    yield archives


def test_the_pack_has_what_is_needed_and_no_more(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "pack"
    assert pack.main(["--output", str(output), "--archives", str(small)]) == 0
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert found == {
        "ldm/a.py", "weights/vae/config.json", "archives/iconify-json-noto-1.0.0.tar.xz",
        "wheels/resvg_py-0.5.0-any.whl", "run.sh",
    }  # fmt: skip
    with tarfile.open(output / "archives/iconify-json-noto-1.0.0.tar.xz") as tar:
        assert tar.getnames() == ["package/icons.json"]
        left = json.load(tar.extractfile("package/icons.json"))
    assert left == {"icons": {"car": {"body": "1"}}, "width": 9}


def test_a_pack_without_an_archive_or_too_large_is_refused(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--output", str(tmp_path / "pack"), "--archives", str(small)]
    monkeypatch.setattr(pack, "LIMIT", 10)
    assert pack.main(command) == 1
    assert "it must have at most" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    shutil.rmtree(small)
    assert pack.main(command) == 1
    assert "put iconify-json-noto-1.0.0.tgz in" in capsys.readouterr().err
    assert not (tmp_path / "pack").exists()
    with pytest.raises(BuildError, match=r"has no icons\.json"):
        (small / "empty").mkdir(parents=True)
        with tarfile.open(small / "iconify-json-noto-1.0.0.tgz", "w:gz"):
            pass
        pack.repack(pack.EMOJIBASE, small, tmp_path, set())
