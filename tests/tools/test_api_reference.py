"""The API reference is written without warnings, and a bad annotation is one."""

import sys
from pathlib import Path

import pytest

import ldm
from ldm.errors import ArgumentError
from tools import api_reference


@pytest.mark.slow
def test_every_module_has_a_page(tmp_path):
    assert api_reference.main(["--output", str(tmp_path)]) == 0
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
