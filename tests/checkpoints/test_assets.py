"""The files that ship with the package are found in a wheel and in a checkout, and nowhere else."""

from pathlib import Path

import pytest

from ldm.checkpoints import assets
from ldm.errors import CheckpointError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place where the package could be installed."""
    folder = tmp_path / "ldm"
    monkeypatch.setattr(assets, "__file__", str(folder / "checkpoints" / "assets.py"))
    return folder


def test_this_checkout() -> None:
    assert (assets.asset_path("weights") / "tokenizer" / "vocab.json").is_file()
    assert assets.asset_path("configs").is_dir()


def test_wheel_comes_first(package: Path) -> None:
    (package.parent / "weights").mkdir()
    (package.parent / "pyproject.toml").touch()
    assert assets.asset_path("weights") == package.parent / "weights"
    (package / "_assets" / "weights").mkdir(parents=True)
    assert assets.asset_path("weights") == package / "_assets" / "weights"


def test_a_stranger_folder_beside_an_installed_package_is_not_ours(package: Path) -> None:
    (package.parent / "weights").mkdir()
    with pytest.raises(CheckpointError, match="install the package again"):
        assets.asset_path("weights")
