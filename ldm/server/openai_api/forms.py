"""Forms with files (multipart/form-data), read into memory up to a limit."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ldm.server.errors import ServerError

B = TypeVar("B", bound=BaseModel)
MOST_FILES, MOST_FIELDS = 24, 256
KIND = "multipart/form-data"
# seed, image[], loras[][name] or loras[0][name], as OpenAI's client writes them.
NAME = re.compile(r"([^\[\]]+)(\[[0-9]{0,3}\])?(?:\[([^\[\]]+)\])?")
LISTS = ("loras", "controlnets", "outpaint", "guidance_interval")


class MemoryParser(MultiPartParser):
    """A parser that writes nothing to the disk."""

    spool_max_size = 0  # never


async def read_form(
    request: Request, cls: type[B], most_bytes: int
) -> tuple[B, dict[str, list[bytes]]]:
    """Return the fields of a form, as ``cls``, and the contents of its files by name.

    Raises ServerError for another content type, too many bytes or parts and for what is no form,
    RequestValidationError for fields that ``cls`` does not take.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != KIND:
        raise ServerError(f"the content type is {kind!r:.60}; send {KIND}", status=415)
    parser = MemoryParser(
        request.headers,
        bounded(request, most_bytes),
        max_files=MOST_FILES,
        max_fields=MOST_FIELDS,
        max_part_size=most_bytes,
    )
    try:
        parts = (await parser.parse()).multi_items()
    except (MultiPartException, ValueError, KeyError) as error:
        words = error.message if isinstance(error, MultiPartException) else str(error)
        raise ServerError(f"the body is no form that can be read: {words:.200}") from None
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    for name, value in parts:
        if isinstance(value, UploadFile):
            files.setdefault(name.removesuffix("[]"), []).append(await value.read())
            await value.close()
        else:
            insert(fields, name, value)
    try:
        return cls.model_validate({name: parsed(name, one) for name, one in fields.items()}), files
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def bounded(request: Request, most_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body. Raises ServerError past ``most_bytes``."""
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > most_bytes:
            raise ServerError(
                f"the body has more than {most_bytes:,} bytes, which this server reads", status=413
            )
        yield chunk


def insert(fields: dict[str, Any], name: str, value: str) -> None:
    """Put a field where its name says: into a list, or into an object of a list.

    Raises ServerError for a name of another form.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise ServerError(f"{name!r:.60} is no name of a field, such as seed or image[]")
    base, item, key = found.groups()
    there = fields.get(base)
    if key is not None:
        rows = fields.setdefault(base, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ServerError(f"{base:.60} is given both as a value and as an object", base[:60])
        if not rows or key in rows[-1]:
            rows.append({})
        rows[-1][key] = value
    elif item is not None or there is not None:
        fields[base] = [*(there if isinstance(there, list) else [there] * (there is not None))]
        fields[base].append(value)
    else:
        fields[base] = value


def parsed(name: str, value: Any) -> Any:
    """Return a field's value; where a list is expected, a text may be JSON, or its only item."""
    if name not in LISTS or not isinstance(value, str):
        return value
    try:
        found = json.loads(value) if value.startswith("[") else [value]
    except (ValueError, RecursionError):
        raise ServerError(f"{name} is {value!r:.60}; expected a list", name) from None
    return found
