"""The files that ship with the package: the built-in model and the model configs."""

from pathlib import Path

from ldm.errors import CheckpointError


def asset_path(name: str) -> Path:
    """Find the folder `name` ("weights" or "configs") of an installed wheel or a checkout.

    pyproject.toml puts both folders into the wheel as ldm/_assets. Raises CheckpointError if the
    folder is in neither place.
    """
    package = Path(__file__).parents[1]
    installed, checkout = package / "_assets" / name, package.parent / name
    if installed.is_dir():
        return installed
    if checkout.is_dir() and (package.parent / "pyproject.toml").is_file():
        return checkout
    raise CheckpointError(
        f"neither {installed} nor {checkout} exists; install the package again with `pip install .`"
    )
