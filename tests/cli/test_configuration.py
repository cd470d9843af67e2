"""Defaults of the user's own: files, the environment, their order, models by short names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ldm.pipeline
from ldm.cli import convert, generate, info
from ldm.cli.configuration import NOT_HERE, find_option, read_settings, read_value
from ldm.cli.options import defaults, parser
from ldm.images.generation_info import read_generation_info
from tests.helpers.files import names

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Command:
    """Draw "a" with the tiny model in a folder with an ldm.toml of the user's → (code, stderr)."""
    (tmp_path / "config" / "ldm").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    shutil.copytree(folder, tmp_path / "models" / "Tiny.Model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    user(f'model_dir = "{tmp_path}/models"\nmodel = "tiny.model"\nsteps = 3')

    def call(*argv: str) -> tuple[int, str]:
        try:
            code = generate.main(["a", "--seed", "1", *argv])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return call


def user(text: str) -> None:
    Path("../config/ldm/ldm.toml").write_text(text, encoding="utf-8")


def drawn(path: str = "a-1.png") -> dict[str, Any]:
    found = read_generation_info(path).arguments
    Path(path).unlink()
    return found


def test_the_order(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options, then the environment, then the folder's file, then the user's."""
    code, err = command()
    assert code == 0, err
    assert f"steps 3 ({read_settings()['model'].origin[:-1]}3)" in err  # the third line
    assert drawn()["num_inference_steps"] == 3
    Path("ldm.toml").write_text("# mine\n\nnum-inference-steps = 2\nguidance_scale = 2")
    assert "num-inference-steps 2 (ldm.toml:3)" in command()[1]
    assert drawn()["num_inference_steps"] == 2
    monkeypatch.setenv("LDM_STEPS", "1")
    assert "num-inference-steps 1 (LDM_STEPS)" in command()[1]
    assert drawn() | {"guidance_scale": 2.0, "num_inference_steps": 1} == drawn_with(command)
    assert "num-inference-steps" not in command("--steps", "4")[1]
    assert drawn()["num_inference_steps"] == 4
    assert command("--quiet")[1] == ""


def drawn_with(command: Command) -> dict[str, Any]:
    command()
    return drawn()


def test_lists_switches_and_paths(command: Command) -> None:
    Path("ldm.toml").write_text(
        'save_steps = true\noptimize = false\noutput = "out/{prompt}.png"\n'
        "guidance_interval = [0.3, 5]\nquiet = true\nstrength = 0.4"
    )
    assert command() == (0, "")
    assert names(Path("out")) == ["a-steps.png", "a.png"]
    assert drawn("out/a.png")["guidance_interval"] == (0.3, 5.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nstepps = 3", "ldm.toml:2: stepps is no setting; did you mean 'steps'?"),
        ("xyzzy = 3", "ldm.toml:1: xyzzy is no setting; keys are the names of options"),
        ("[generate]\nsteps = 3", "ldm.toml:1: generate is no setting"),
        ('prompt = "a"', "prompt is for a single command"),
        ("force = true", "force is for a single command"),
        ('steps = "many"', "ldm.toml:1: steps: invalid int value: 'many'"),
        ("steps = true", "ldm.toml:1: steps is True; expected a text or a number"),
        ("steps = 2.5", "ldm.toml:1: steps: invalid int value: '2.5'"),
        ('quiet = "loud"', "ldm.toml:1: quiet is 'loud'; expected true or false"),
        ('dtype = "flaot32"', "invalid choice: 'flaot32'"),
        ("seed = {a = 1}", "ldm.toml:1: seed is {'a': 1}; expected a text or a number"),
        ("steps = ", "ldm.toml cannot be read: Invalid value (at end of document)"),
        ("steps = 3\nsteps = 4", "ldm.toml cannot be read: "),
        ("a = " + "[" * 5000, "ldm.toml cannot be read: "),
        ('sampler = "eulr"', "did you mean 'euler' or 'euler_a'"),
        ('x = "\udcff"', "ldm.toml cannot be read: "),
    ],
)
def test_files_that_are_wrong(
    command: Command, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.delattr(ldm.pipeline.Pipeline, "from_pretrained")
    Path("ldm.toml").write_bytes(text.encode(errors="surrogateescape"))
    code, err = command("--quiet")
    assert code == 2 and message in err
    assert names() == ["ldm.toml"]


def test_a_wrong_value_names_its_place(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only the check of all arguments, or the model, finds it."""
    Path("ldm.toml").write_text("\nbatch_size = 0")
    assert "(batch_size is set by ldm.toml:2)" in command("--quiet")[1]
    Path("ldm.toml").write_text('sampler = "eulr"')
    assert "(sampler is set by ldm.toml:1)" in command("--quiet")[1]
    Path("ldm.toml").unlink()
    monkeypatch.setenv("LDM_WIDTH", "7")
    code, err = command("--quiet")
    assert code == 2 and "width is 7; " in err and "(width is set by LDM_WIDTH)" in err


def test_the_environment(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_STEPS", "two")
    code, err = command()
    assert (code, names()) == (2, []) and "LDM_STEPS: steps: invalid int value: 'two'" in err
    monkeypatch.setenv("LDM_STEPS", "")  # as if it were not set
    monkeypatch.setenv("LDM_STPES", "2")  # maybe another program's
    monkeypatch.setenv("LDM_QUIET", "yes")
    assert command() == (0, "")
    monkeypatch.setenv("LDM_QUIET", "no")
    assert "warning: LDM_STPES: stpes is no setting; did you mean 'steps'?" in command()[1]


def test_models_by_name(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, err = command("--model", "tinny")
    assert code == 2 and "--model is 'tinny', and neither here nor in" in err
    assert "there are: Tiny" in err or "did you mean 'Tiny" in err
    assert command("--model", "x", "--model-dir", "nowhere")[0] == 2
    assert info.main(["Tiny.Model"]) == 0
    assert "StableDiffusionPipeline" in capsys.readouterr().out
    assert convert.main(["tiny.model", "../models/other"]) == 0
    capsys.readouterr()
    assert command("--model", "Other")[0] == 0
    assert read_generation_info("a-1.png").model == "other"


def test_a_picture_is_drawn_again_with_its_own_settings(command: Command) -> None:
    """Defaults that would change it do not; its model is found by its name."""
    Path("ldm.toml").write_text("steps = 2")
    command()
    Path("ldm.toml").write_text('steps = 5\nsampler = "euler"\noutput = "again/"\nquiet = true')
    user('model_dir = "../models"')
    assert generate.main(["--from", "a-1.png"]) == 0
    assert Path("again/a-1.png").read_bytes() == Path("a-1.png").read_bytes()


def test_every_option_may_have_a_default() -> None:
    for action in parser()._actions:
        if action.dest in NOT_HERE or not action.option_strings or action.dest == "==SUPPRESS==":
            continue
        assert find_option(action.dest, "x") == action.dest
        value = defaults()[action.dest]
        if isinstance(value, bool | int | float | str):
            assert read_value(action.dest, value, action.dest, "x") == value
