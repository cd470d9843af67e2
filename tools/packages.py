"""Packages as archives: some carry data that no other registry has (data tools only)."""

import subprocess
import sys
import tarfile
from pathlib import Path


def read_file(archive: tarfile.TarFile, name: str) -> bytes:
    """Read one file of an archive. Raises KeyError if it has no such file."""
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(f"{name} is not a file")
    return file.read()


def fetch_wheel(name: str, version: str, archives: Path) -> Path:
    """Return the path of the package's wheel, downloaded with pip unless ``archives`` has it.

    Raises SystemExit when pip cannot download it.
    """
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(archives.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
        command = [*pip, "--no-deps", "--dest", str(archives), f"{name}=={version}"]
        if subprocess.run(command, check=False).returncode or not list(archives.glob(pattern)):
            sys.exit(f"pip could not download {name}=={version}; put {pattern} in {archives}")
    return next(archives.glob(pattern))
