"""What lies in a folder."""

from pathlib import Path


def names(folder: Path | None = None) -> list[str]:
    """Return the sorted names of all that lies in a folder, by default in the current one."""
    return sorted(path.name for path in (folder or Path()).iterdir())
