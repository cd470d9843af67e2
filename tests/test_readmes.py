"""Every README works: its shell and Python blocks run in order, its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
READMES = sorted(
    path
    for pattern in ("*.md", "*/README.md", "*/*/README.md")
    for path in ROOT.glob(pattern)
    if path.name in ("README.md", "CONTRIBUTING.md")
    and path.relative_to(ROOT).parts[0] not in ("data", "runs")  # git-ignored, of whoever trains
)
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<kind>bash|python)\n(?P<text>.*?)```", re.S
)
LINK = re.compile(r"(?:\]\(|src=\")([^)\"\s]+)")
INSTALLS = re.compile(r"^pip install [^&\n]*(?:&& )?(?:pytest$)?|^make .*$", re.M)  # .ci/run does


class Block(NamedTuple):
    """A block of code in a README, and why it cannot run here, if it cannot."""

    kind: str
    text: str
    why: str | None


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a file, in order."""
    found = BLOCK.finditer(path.read_text(encoding="utf-8"))
    return [Block(m["kind"], INSTALLS.sub("", m["text"]), m["why"]) for m in found]


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, which looks like the repository's root."""
    for name in ("tools", "configs", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("path", READMES, ids=named(READMES))
def test_blocks_run_in_order(path: Path, folder: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks(path):
        if block.why is None and block.kind == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text], capture_output=True
            )
            assert done.returncode == 0, f"{block.text}\n{done.stderr.decode()}"
        elif block.why is None:
            exec(compile(block.text, str(path), "exec"), names)


def commands(text: str) -> list[str]:
    """Return the commands of a shell block, one a line."""
    return [line.split("#")[0].strip() for line in text.replace("\\\n", " ").splitlines() if line]


@pytest.mark.parametrize("path", READMES, ids=named(READMES))
def test_what_does_not_run_is_right_at_least(path: Path) -> None:
    """Its commands and options exist, and its Python can be read."""
    for block in blocks(path):
        if block.why is not None and block.kind == "python":
            compile(block.text, str(path), "exec")
        elif block.why is not None:
            for command in commands(block.text):
                check_options(command)


def check_options(command: str) -> None:
    """Check that a command's program knows its options."""
    words = command.split()
    if words[:2] == ["python", "-m"]:
        words = [f"{sys.executable} -m {words[2]}", *words[3:]]
    elif words[:1] == ["ldm"]:
        words = [f"{sys.executable} -m ldm {words[1]}", *words[2:]]
    else:
        return
    shown = subprocess.run(
        [*words[0].split(), "--help-all" if "generate" in words[0] else "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert shown.returncode == 0, shown.stderr
    for word in words[1:]:
        if word.startswith("--"):
            assert word.split("=")[0] in shown.stdout, f"{word} in: {command}"


@pytest.mark.parametrize("path", READMES, ids=named(READMES))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        if "://" in link:
            continue
        target, _, heading = link.partition("#")
        other = (path.parent / target).resolve() if target else path
        assert other.exists(), link
        if heading:
            assert heading in headings(other), link


def headings(path: Path) -> set[str]:
    """Return the anchors of a file's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
