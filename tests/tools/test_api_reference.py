"""The API reference is written without warnings, and a bad annotation is one."""

import subprocess
import sys
from pathlib import Path

import pytest

import ldm
from ldm.errors import ArgumentError
from tools import api_reference


@pytest.mark.slow
def test_every_module_has_a_page(tmp_path):
    # In a process of its own: it defines in each module what only type checkers see.
    command = [sys.executable, "-m", "tools.api_reference", "--output", str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    pages = {path.name for path in tmp_path.rglob("*.html")} - {"index.html"}
    assert pages >= {f"{path.stem}.html" for path in Path(ldm.__file__).parent.rglob("[a-z]*.py")}
    for page in ("ldm.html", "ldm/pipeline.html", "ldm/samplers/ddim.html"):
        assert (tmp_path / page).is_file()
    assert "num_inference_steps" in (tmp_path / "ldm/pipeline.html").read_text()


def test_a_warning_is_an_error(tmp_path, monkeypatch):
    """A page without what it should say is never written in silence."""
    package = tmp_path / "broken"
    package.mkdir()
    (package / "__init__.py").write_text('__all__ = ["there"]\nthere: "Missing" = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    import pdoc  # noqa: F401 - a package is not imported whole into a copy of sys.modules

    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    with pytest.raises(ArgumentError, match="Missing"):
        api_reference.write(tmp_path / "pages", "broken")
