"""The settings line of A1111's web UI: `Steps: 20, Sampler: Euler a, Model: "a, b", …`.

It is read in linear time: each value is looked at once, and the scans that can fail are counted.
"""

from __future__ import annotations

import json
import re

LONGEST_NAME = 100
NAME = rf"\w[\w \-/]{{1,{LONGEST_NAME - 1}}}"
START = re.compile(rf"\s*({NAME}):\s*")
STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
QUOTED = re.compile(rf"({STRING})\s*(?:,|$)")
BRACKETS = re.compile(rf"{STRING}|[\[\]{{}}]")
END = re.compile(r"\s*(?:,|$)")
OPEN_BRACKETS = 3  # brackets that nothing closes; further ones are plain text

# What tells a line of settings from a line of a prompt, and how their values look.
TELLING = {
    "steps": re.compile(r"\d+"),
    "sampler": re.compile(r"\S.*"),
    "cfg scale": re.compile(r"-?\d+(\.\d*)?"),
    "seed": re.compile(r"-?\d+"),
    "size": re.compile(r"\d+ ?[xX×] ?\d+"),
}
FEWEST, FEWEST_TELLING = 3, 2  # settings in a line that is no line of the prompt


def read_line(line: str) -> list[tuple[str, str]]:
    """Read the (name, value) pairs of a line; [] for one that does not begin with a name.

    A value is quoted as JSON, or an object or list in brackets, or goes up to the next comma that
    a name follows.
    """
    found: list[tuple[str, list[str]]] = []
    position, brackets_left = 0, OPEN_BRACKETS
    while position < len(line):
        start = START.match(line, position)
        if start is None:
            if not found:
                return []
            end = _comma(line, position)
            if part := line[position:end].strip():  # behind a comma inside the value before
                found[-1][1].append(part)
            position = end + 1
            continue
        position = start.end()
        if quoted := QUOTED.match(line, position):
            found.append((start[1], [unquote(quoted[1])]))
            position = quoted.end()
            continue
        closing = None
        if line[position : position + 1] in ("{", "[") and brackets_left:
            closing = _closing(line, position)
            brackets_left -= closing is None
        end = _comma(line, position) if closing is None else closing
        found.append((start[1], [line[position:end].strip()]))
        position = line.find(",", end) + 1 or len(line)
    return [(name, ", ".join(parts)) for name, parts in found]


def is_settings(pairs: list[tuple[str, str]]) -> bool:
    """Whether these are the settings of a picture, and not a prompt with colons."""
    telling = {name.casefold() for name, value in pairs if is_telling(name, value)}
    return len(pairs) >= FEWEST and len(telling) >= FEWEST_TELLING


def is_telling(name: str, value: str) -> bool:
    """Whether this is a setting of a picture that prompts do not look like."""
    form = TELLING.get(name.casefold())
    return form is not None and form.fullmatch(value) is not None


def quote(value: str) -> str:
    """Quote a value as JSON if it could be misread: with `,` `:` `"`, newlines or outer spaces."""
    risky = any(mark in value for mark in ',:"\n') or value[:1] in ("{", "[")
    if value == value.strip() and not risky:
        return value
    return json.dumps(value, ensure_ascii=False)


def unquote(value: str) -> str:
    """Take the quotes of JSON off; return a value that is not JSON as it is."""
    try:
        return str(json.loads(value, strict=False))
    except (ValueError, RecursionError):  # written by hand or by another tool
        return value


def _comma(line: str, position: int) -> int:
    end = line.find(",", position)
    return len(line) if end < 0 else end


def _closing(line: str, position: int) -> int | None:
    """Find the end of an object or list that a comma or the line's end follows."""
    depth = 0
    for mark in BRACKETS.finditer(line, position):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if depth == 0 and mark[0] in ("]", "}"):
            return mark.end() if END.match(line, mark.end()) else None
    return None
