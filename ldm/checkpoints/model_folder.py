"""Models by short names: ``--model dreamshaper`` is ``dreamshaper.safetensors`` in a folder."""

from __future__ import annotations

from pathlib import Path

from ldm.errors import ArgumentError, did_you_mean

ENDINGS = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")  # the safest first
MOST = 10_000  # files and folders to look at


def find_model(name: str | None, folder: Path | None) -> str | None:
    """Return the path of a model that ``folder`` has under a name, else the name as it is.

    A file or folder that exists is itself; so is a hub id, "owner/name", that the folder has not.
    Capitals count only where there are two. Raises ArgumentError for a name that is not there.
    """
    if name is None or folder is None or Path(name).expanduser().exists():
        return name
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ArgumentError(f"--model-dir is {str(folder)!r}, which is no folder")
    known = models(folder)
    for same in (str, str.lower):
        for path in known:
            inside = path.relative_to(folder)
            forms = {path.name, inside.as_posix()}
            if path.is_file():
                forms |= {path.stem, inside.with_suffix("").as_posix()}
            if same(name) in map(same, forms):
                return str(path)
    if "/" in name:
        return name
    hint = did_you_mean(name, {path.stem: path.stem for path in known}, count=3)
    shown = ", ".join(path.stem for path in known[:5]) or "none"
    raise ArgumentError(
        f"--model is {name!r}, and neither here nor in {folder} is one of that name; "
        + (hint or f"there are: {shown}")
    )


def models(folder: Path, endings: tuple[str, ...] = ENDINGS) -> list[Path]:
    """Return the models in a folder and below it: files by their endings, and diffusers folders."""
    found: list[Path] = []
    left, seen = [folder], 0
    while left and seen < MOST:
        for path in sorted(left.pop().iterdir()):
            seen += 1
            if path.is_dir() and (path / "model_index.json").is_file():
                found.append(path)
            elif path.is_dir() and not path.is_symlink():
                left.append(path)
            elif path.suffix.lower() in endings and path.is_file():
                found.append(path)
    return sorted(
        found, key=lambda path: (endings.index(path.suffix.lower()) if path.is_file() else -1, path)
    )
