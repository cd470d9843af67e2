"""Build a small set of real photographs with captions: the photographic stamps of Tux Paint.

    python -m tools.build_photos --output data/photos

Debian's package `tuxpaint-stamps-default` (GPL-2) has some hundreds of animals, foods, plants and
things cut out of photographs, and drawings, which are left out by how few colours they have. The
folder has PNG files on white and `metadata.jsonl`: file_name, text, label. It appears whole or not
at all. Where apt-get is not at hand, put the package's .deb into --archives.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.images import load_image
from tools.building import build_whole
from tools.builtin_model.icons.sources import BuildError
from tools.packages import read_file

PACKAGE = "tuxpaint-stamps-default"
STAMPS = "./usr/share/tuxpaint/stamps/"
# Drawings by their names; mirrored copies; signs and letters; kinds that are mostly drawings; war.
LEFT_OUT = re.compile(
    r"cartoon|clipart|_mirror|alphabets|math/|money/|symbols/|roadsigns|flags/"
    r"|clothes/|military/|seasonal/"
)
COLOURS = 2.8  # of a photograph: different ones for each √pixel; of most drawings, below 2
MARGIN = 0.05  # of the longer side, white around the object
LICENCES = """# Sources of the pictures

- Tux Paint Stamps, copyright 2002-2022 by Bill Kendrick and contributors, licence GPL-2: see the
  package `{package}` of Debian.
- Changes: the photographs among them, on white squares; captions cut to their first sentence.
"""


def fetch(archives: Path) -> Path:
    """Path of the package's .deb, downloaded with apt-get unless ``archives`` has it.

    Raises BuildError where that is not possible.
    """
    if not list(archives.glob(f"{PACKAGE}_*.deb")):
        archives.mkdir(parents=True, exist_ok=True)
        remedy = f"put {PACKAGE}_*.deb in {archives}"
        try:
            command = ["apt-get", "download", "--quiet", PACKAGE]
            done = subprocess.run(command, cwd=archives, capture_output=True, text=True)
        except FileNotFoundError:
            raise BuildError(f"apt-get is not installed; {remedy}") from None
        if done.returncode or not list(archives.glob(f"{PACKAGE}_*.deb")):
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BuildError(f"apt-get download {PACKAGE} failed: {reason}; {remedy}")
    return max(archives.glob(f"{PACKAGE}_*.deb"))


def members(deb: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the package's files with their paths: an ar archive, in which data.tar.* has them."""
    content = deb.read_bytes()
    place = len(b"!<arch>\n")
    while place < len(content):
        header = content[place : place + 60]  # name, 16 characters, …, size, 10, and two more
        name, size = header[:16].decode().strip(), int(header[48:58])
        if name.startswith("data.tar"):
            data = io.BytesIO(content[place + 60 : place + 60 + size])
            with tarfile.open(fileobj=data) as tar:
                for member in tar:
                    if member.isfile():
                        yield member.name, read_file(tar, member.name)
        place += 60 + size + size % 2


def is_photograph(image: Image.Image) -> bool:
    """Whether the opaque part of a stamp has as many colours as photographs have."""
    small = image.convert("RGBA")
    small.thumbnail((200, 200))
    pixels = np.asarray(small).reshape(-1, 4)
    colours = pixels[pixels[:, 3] > 250][:, :3] // 8
    if len(colours) < 1000:
        return False
    return len(np.unique(colours, axis=0)) > COLOURS * len(colours) ** 0.5


def on_white(image: Image.Image, side: int) -> Image.Image:
    """Cut out the object, in the middle of a white square."""
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    length = round(max(image.size) * (1 + 2 * MARGIN))
    square = Image.new("RGBA", (length, length))
    square.paste(image, ((length - image.width) // 2, (length - image.height) // 2))
    return load_image(square).resize((side, side), Image.Resampling.LANCZOS)


def build(archives: Path, folder: Path, side: int) -> int:
    """Write the set into ``folder``, which exists; returns the number of pictures.

    Raises BuildError where the package cannot be fetched or read.
    """
    deb = fetch(archives)
    try:
        files = {
            name.removeprefix(STAMPS): content
            for name, content in members(deb)
            if name.startswith(STAMPS) and name.endswith((".png", ".txt"))
        }
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        raise BuildError(f"{deb} cannot be read ({error}); delete it and retry") from None
    rows: list[dict[str, str]] = []
    for name in sorted(files):
        caption = files.get(f"{name[:-4]}.txt", b"").decode("utf-8", "replace")
        if name.endswith(".txt") or LEFT_OUT.search(name) or not caption.strip():
            continue
        image = Image.open(io.BytesIO(files[name]))
        if is_photograph(image):
            text = re.split(r"(?<=[.!?])\s", caption.splitlines()[0].strip())[0].rstrip(".!")
            file = f"{len(rows):03d}.png"
            on_white(image, side).save(folder / file)
            rows.append({"file_name": file, "text": text, "label": name.split("/")[0]})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    (folder / "LICENSES.md").write_text(LICENCES.format(package=deb.stem))
    return len(rows)


def main(argv: list[str] | None = None) -> int:
    """Build; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/photos"), help="new folder")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (128)")
    parser.add_argument(
        "--archives", type=Path, default=Path("data/deb"), help="folder of the .deb file"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing folder")
    args = parser.parse_args(argv)
    if args.size < 16:
        parser.error(f"--size is {args.size}; it must be at least 16")

    def fill(folder: Path) -> str:
        return f"{build(args.archives, folder, args.size)} pictures in {args.output}"

    return build_whole(args.output, args.force, fill)


if __name__ == "__main__":
    sys.exit(main())
