"""``ldm``: subcommands, help in two lengths, nearest names, the names that other programs use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ldm import __version__
from ldm.cli import generate
from ldm.cli.main import COMMANDS, main
from ldm.cli.options import parser, read

ROOT = Path(__file__).parents[2]


def call(*argv: str) -> int:
    try:
        return main(list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize(
    "argv", [["--help"], ["--version"], ["generate", "-h"], ["info", "-h"], ["upscale", "-h"]]
)
def test_help_needs_no_torch(argv: list[str]) -> None:
    code = "import sys; from ldm.cli.main import main\ntry: main(sys.argv[1:])\nfinally: "
    code += "print({'torch', 'numpy', 'PIL'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.stderr == "set()\n"
    assert done.stdout


def test_the_version_and_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"ldm {__version__}\n"
    assert call("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    for name in COMMANDS:
        assert call(name, "--version") == 0
        assert capsys.readouterr().out == f"ldm {__version__}\n"
        assert call(name, "--help") == 0
        assert f"usage: ldm {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generat", "a car"], "'generat' is no command; did you mean 'generate'?"),
        (["a red car"], 'to draw a picture of it: ldm generate "a red car"'),
        (["--seed", "1"], "to draw a picture: ldm generate --seed"),
        ([], "usage: ldm COMMAND"),
        (["generate"], 'ldm generate "a red car"'),
        (
            ["generate", "--seed", "1"],
            'there is no prompt; give a text, such as "a red',
        ),
        (["generate", "a", "--sede", "1"], "--sede 1; did you mean --seed?"),
        (["generate", "a", "--guidance-scle=1"], "did you mean --guidance-scale?"),
        (["generate", "a", "--dtype", "flaot32"], "did you mean 'float32'?"),
        (["generate", "a", "--sampler", "eulr_a"], "did you mean 'euler_a'"),
        (["generate", "a", "--schedule", "caras"], "did you mean 'karras'"),
        (["generate", "a", "--num-inf", "3"], "unrecognized arguments: --num-inf"),
        (["generate", "a", "-n", "4"], "for 4 pictures give --num-images 4"),
        (["train", "--confg", "x"], "--config"),
    ],
)
def test_what_is_wrong_gets_the_nearest_name(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert call(*argv) == 2
    out, err = capsys.readouterr()
    assert message in err and out == ""


def test_the_short_help_is_of_everyday_options(capsys: pytest.CaptureFixture[str]) -> None:
    call("generate", "--help")
    short = capsys.readouterr().out
    call("generate", "--help-all")
    whole = capsys.readouterr().out
    assert len(short.splitlines()) < 70 < len(whole.splitlines())
    everyday = (
        "--prompt",
        "--output",
        "--seed",
        "--steps",
        "--width",
        "--guidance-scale",
        "--image",
    )
    assert all(f"{name} " in short for name in everyday)
    assert "--deep-cache" not in short and "--help-all" in short
    places = [short.index(f"{name} ") for name in ("--prompt", "--output", "--seed", "--steps")]
    assert places == sorted(places) and short.index("examples:") > places[-1]
    hidden = {"--no-optimize", "--no-int8", "--no-fp8"}  # beside their opposites
    hidden |= {"--no-int8-weights", "--no-few-steps"}
    for option in parser()._option_string_actions.keys() - hidden:
        assert option in whole, option


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["-p", "a cat"], "prompt", ["a cat"]),
        (["a dog", "--prompt", "a cat", "-p", "b"], "prompt", ["a dog", "a cat", "b"]),
        (["--cfg-scale", "3"], "guidance_scale", 3.0),
        (["--cfg_scale", "3"], "guidance_scale", 3.0),
        (["--num_inference_steps=3"], "num_inference_steps", 3),
        (["--batch-count", "4"], "num_images", 4),
        (["-b", "4"], "num_images", 4),
        (["-s", "42"], "seed", 42),
        (["--scheduler", "karras"], "schedule", "karras"),
        (["--sampling-method", "euler_a"], "sampler", "euler_a"),
        (["--init-img", "a.png"], "image", "a.png"),
        (["-t", "2"], "threads", 2),
        (["-W", "64"], "width", 64),
        (["-n", "blurry"], "negative_prompt", "blurry"),
        (["--negative-prompt", "4"], "negative_prompt", "4"),
    ],
)
def test_names_of_other_programs(argv: list[str], name: str, value: object) -> None:
    assert getattr(read(argv), name) == value


def test_no_text_for_a_model_without_text(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that has no text encoder draws without a prompt; ours does not."""
    from ldm.cli.slips import reads_texts

    assert reads_texts(str(folder)) and reads_texts(None) and reads_texts("owner/name")
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline", "unet": []}')
    assert not reads_texts(str(tmp_path))
    assert generate.main(["--model", str(folder)]) == 2


def test_completion(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    assert call("--print-completion") == call("--print-completion", "fish") == 2
    capsys.readouterr()
    for shell in ("zsh", "tcsh", "bash"):
        assert call("--print-completion", shell) == 0
        script = capsys.readouterr().out
        assert "sampling" in script
    (tmp_path / "ldm.sh").write_text(script)
    line = "source ldm.sh; COMP_WORDS=(ldm {}); COMP_CWORD={}; _shtab_ldm; echo ${{COMPREPLY[@]}}"
    for words, place, want in (
        ("gen", 1, "generate"),
        ("generate --hires-sc", 2, "--hires-scale"),
        ("generate --sampler dpmpp_2m_", 3, "dpmpp_2m_sde"),
    ):
        code = line.format(words, place)
        done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.split() == [want]
