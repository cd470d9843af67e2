"""Old names of modules still work, and say the new ones; to be deleted with ldm/_moved.py."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from ldm._moved import MOVED, RENAMED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_gives_what_the_new_one_has(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}; the old name goes"):
        module = import_module(old)
    new = import_module(MOVED[old])
    for name in (name for name in vars(new) if not name.startswith("_")):
        assert getattr(module, name) is getattr(new, name)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_says_the_new_one(old: str) -> None:
    module, _, name = old.rpartition(".")
    with pytest.warns(DeprecationWarning):
        found = getattr(import_module(module), name)
    assert found is getattr(import_module(MOVED[module]), RENAMED[old])


def test_the_warning_is_about_the_line_that_imports() -> None:
    code = "import warnings; warnings.simplefilter('error')\nfrom ldm.recipe import read_recipe"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "DeprecationWarning: ldm.recipe is now ldm.images.generation_info" in result.stderr
    shown = [sys.executable, "-W", "always", "-c", "from ldm.recipe import read_recipe"]
    lines = subprocess.run(shown, capture_output=True, text=True, check=True).stderr
    assert lines.startswith("<string>:1: DeprecationWarning")


def test_other_names_are_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"ldm\.no_such"):
        import_module("ldm.no_such")
    with pytest.raises(ImportError, match="no_such"):
        exec("from ldm.recipe import no_such", {})


def test_names_of_a_module_that_is_a_package_now() -> None:
    with pytest.warns(
        DeprecationWarning, match=r"ldm\.loading\.names_of is now ldm\.loading\.sing"
    ):
        from ldm.loading import names_of
    assert callable(names_of)
    with pytest.raises(ImportError, match="no_such"):
        exec("from ldm.loading import no_such", {})
