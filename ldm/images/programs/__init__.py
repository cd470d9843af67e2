"""What image generators write into pictures: one module for each of them.

Each reads the text fields of a file (see ``ldm.images.text_fields``) and returns the settings under
the names that A1111's web UI gives them, as strings ("Prompt", "Steps", "CFG scale", …), with what
has no such name under the program's own; None if the file is none of its own. A file that is, but
cannot be read, raises a ValueError that names the program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ldm.images.metadata import names_settings, parse_parameters
from ldm.images.programs import comfyui, fooocus, invokeai, novelai, others, swarmui
from ldm.images.programs.json_settings import is_json
from ldm.images.text_fields import COMMENT, PARAMETERS

Labels = dict[str, str]
LONGEST_TEXT = 2**19  # characters: ten times what people write


def read_labels(fields: Mapping[str, str]) -> Labels | None:
    """Read the settings in a file's texts; None if no generator wrote any."""
    for read in READERS:
        labels = read(fields)
        if labels is not None:
            return labels
    return None


def web_ui(fields: Mapping[str, str]) -> Labels | None:
    """Read the text of A1111's web UI, which many programs write.

    The chunk `parameters` is its own: there, a prompt alone is enough. Cameras and paint programs
    write comments, too: those have to show settings.
    """
    for name in (PARAMETERS, COMMENT, "comment", "Comment", "ImageDescription", "Description"):
        text = fields.get(name, "")
        if not text.strip() or is_json(text):
            continue
        if len(text) > LONGEST_TEXT:
            raise ValueError(
                f"its field {name} has {len(text)} characters; at most {LONGEST_TEXT} are read"
            )
        if name == PARAMETERS or names_settings(text):
            return parse_parameters(text)
    return None


READERS: tuple[Callable[[Mapping[str, str]], Labels | None], ...] = (
    swarmui.read,
    fooocus.read,
    novelai.read,
    others.read_draw_things,
    others.read_easy_diffusion,
    invokeai.read,
    web_ui,
    comfyui.read,
    others.read_plain,
    others.refuse,
)
