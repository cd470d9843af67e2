"""What is printed cannot act on the terminal, whatever files, names and prompts hold."""

from __future__ import annotations

import ast
import contextlib
import json
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ldm.cli
from ldm.cli import generate, info
from ldm.cli.main import main
from ldm.cli.printed import visible
from ldm.images import save_image
from tests.images.pictures import png

FORGED = (
    "\x1b]0;title\x07\x1b[2J\x9b31m\r\nerror: forged\u2028line\u202eltr\u2066\u200f\x00\x7f\x08"
)
ALLOWED = {
    # Writes what it is given to stdout and stderr.
    "printed.py": {"print", "stdout", "stderr"},
    # These ask whether they are open, or terminals.
    "common.py": {"stdout", "stderr"},
    "streams.py": {"stdout"},
    "progress.py": {"stderr"},
    "upscale.py": {"stdout"},
}


def test_nothing_else_prints() -> None:
    for path in sorted(Path(ldm.cli.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                used |= {node.func.id} & {"print"}
            elif isinstance(node, ast.Attribute) and node.attr in (
                *("stdout", "stderr", "__stdout__", "print_exc", "print_exception"),
            ):
                used.add(node.attr)
        assert used <= ALLOWED.get(path.name, set()), f"{path.name} uses {used}"


def is_clean(text: str, lines: bool = True) -> bool:
    """Whether a text leaves the terminal alone, except for the ends of its lines."""
    rest = text.replace("\n", "") if lines else text
    return not any(
        unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF")
        or unicodedata.bidirectional(letter) in ("LRI", "RLI", "FSI", "PDI")
        for letter in rest
    )


def test_visible() -> None:
    assert (
        visible("a é ほ \U0001f468\u200d\U0001f4bb\u00a0b")
        == "a é ほ \U0001f468\u200d\U0001f4bb\u00a0b"
    )
    assert visible("\x1b[2J\n\t\x9b\u202e\udcff") == r"\x1b[2J\n\t\u009b\u202e\udcff"
    assert is_clean(visible("".join(map(chr, range(0x3000))) + FORGED), lines=False)
    text = json.dumps({"a": FORGED}, ensure_ascii=False)
    assert json.loads(visible(text)) == {"a": FORGED}


def run(argv: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> tuple[str, str]:
    """Run a command; return what it printed, which has to be clean."""
    with contextlib.suppress(SystemExit):
        main(argv)
    out, error = (part.decode() for part in capfdbinary.readouterr())
    assert is_clean(out) and is_clean(error)
    assert not any(line.startswith("error: forged") for line in (out + error).splitlines())
    return out, error


def test_pictures(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    settings = (
        f"a{FORGED}\nSteps: 5, Sampler: x{FORGED[:20]}, Model: y{FORGED[:9]}, Seed: 1, Size: 8x8"
    )
    out, _ = run(["info", str(png(tmp_path, parameters=settings))], capfdbinary)
    assert "prompt" in out
    ours = {"ldm": FORGED, "arguments": {"prompt": FORGED, FORGED: 1}, "model": FORGED}
    ours |= {"controlnets": [FORGED], "notes": [FORGED], "images": {FORGED: "x"}, "grid": FORGED}
    path = png(tmp_path, ldm=ours)
    run(["info", str(path)], capfdbinary)
    run(["generate", "--from", str(path)], capfdbinary)
    graph = {FORGED: {"class_type": FORGED, "inputs": {FORGED: FORGED, "text": FORGED}}}
    run(["info", str(png(tmp_path, prompt=graph))], capfdbinary)


def test_weights_and_configs(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    names = (f"lora_unet_{FORGED}.lora_down.weight", f"model.diffusion_model.{FORGED}")
    for name in (*names, f"{FORGED}.weight"):
        for key in (
            "ss_base_model_version",
            "modelspec.architecture",
            "ss_tag_frequency",
            "format",
        ):
            save_file({name: torch.ones(2, 2)}, tmp_path / "a.safetensors", {key: FORGED})
            run(["info", str(tmp_path / "a.safetensors")], capfdbinary)
        run(["generate", "a", "--model", str(tmp_path / "a.safetensors")], capfdbinary)
        run(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b")], capfdbinary)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": FORGED, FORGED: FORGED}))
    run(["info", str(tmp_path)], capfdbinary)
    run(["generate", "a", "--model", str(tmp_path)], capfdbinary)


def test_names_of_files(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    folder = tmp_path / FORGED.replace("\x00", "").replace("/", "")
    folder.mkdir()
    save_image(Image.new("RGB", (8, 8)), folder / f"{folder.name}.png")
    for path in (folder, folder / f"{folder.name}.png", folder / "none.png"):
        run(["info", str(path)], capfdbinary)
        run(["generate", "a", "--image", str(path), "--model", str(path)], capfdbinary)
        run(["generate", "--prompts", str(path)], capfdbinary)
        run(["generate", "a", "--wildcards", str(path), "--choices"], capfdbinary)
        run(["train", "--config", str(path)], capfdbinary)


def test_texts(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forged = FORGED.replace("\x00", "")
    for argv in (
        [forged], ["a", f"--{forged}"], ["a", "--sampler", forged], ["a", "--seed", forged],
        ["a", "--x", forged], ["a", "-o", f"{{{forged}}}.png"], ["a", "--control", forged],
        [f"<lora:{forged}:1>"], [f"{{{forged}", "--choices"], [f"__{forged}__", "--choices"],
    ):  # fmt: skip
        run(["generate", "--model", "none", *argv], capfdbinary)
    run([forged], capfdbinary)
    run(["info", "--words", forged], capfdbinary)
    Path("p.jsonl").write_text(json.dumps({"prompt": forged, forged: 1}) + "\n[1\n{\n")
    run(["generate", "--prompts", "p.jsonl", "--model", "none"], capfdbinary)
    out, _ = run(["generate", "--json", "--model", forged, "a"], capfdbinary)
    assert json.loads(out)["code"]
    Path("c.toml").write_text(f'"{json.dumps(forged)[1:-1]}" = 1\n')
    run(["train", "--config", "c.toml", "--dry-run"], capfdbinary)
    run(["train", "--config", "c.toml", "--debug"], capfdbinary)
    run(["generate", "a", "--model", forged, "--debug"], capfdbinary)
    Path("ldm.toml").write_text(f'"{json.dumps(forged)[1:-1]}" = 1\n')
    run(["generate", "a"], capfdbinary)
    with contextlib.suppress(SystemExit):
        generate.main([forged, "--bad"])
        info.main([forged])
