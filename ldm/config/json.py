"""Files that hold one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldm.errors import CheckpointError
from ldm.writing import whole_file


def read_json(path: str | Path, optional: bool = False) -> dict[str, Any]:
    """Read a file that holds one JSON object; {} if an ``optional`` one does not exist.

    Raises CheckpointError for a file that is missing, unreadable, or not a JSON object.
    """
    path = Path(path)
    if optional and not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; a model folder needs it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise CheckpointError(
            f"cannot read {path} as JSON ({error}); download the model again"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}; expected a JSON object")
    return values


def write_json(path: str | Path, values: dict[str, Any]) -> None:
    """Write a JSON object whole or not at all, and the folder it is in. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with whole_file(path) as new:
        new.write_text(text, encoding="utf-8")
