"""How a picture was made, as text in the form of AUTOMATIC1111's web UI, which many tools read:

    <prompt, may be several lines>
    Negative prompt: <text, may be several lines>       (left out if empty)
    Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, Size: 512x512, …

Where it stands in a file: see ``ldm.images.text_fields``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ldm.errors import ArgumentError
from ldm.images.infotext import (
    FEWEST,
    LONGEST_NAME,
    NAME,
    is_settings,
    is_telling,
    quote,
    read_line,
)

PROMPT, NEGATIVE = "Prompt", "Negative prompt"
# Lines that SD.Next and the extension "dynamic prompts" write between the prompts and the settings.
TEMPLATES = ("template:", "negative template:")
MOST_LINES = 50  # of settings, one a line
ONE_LINE = re.compile(r"(?:^|\s)(?=Steps:\s*\d+\s*,)")


def format_parameters(parameters: Mapping[str, object]) -> str:
    """Format `Prompt`, `Negative prompt` and at least three named settings; leave out None.

    `parse_parameters` gives the same names and, as strings, the same values back, if the settings
    are those of a picture (see ``infotext.is_settings``). The form has two limits: spaces around a
    line of a prompt are lost, and a line of a prompt that begins with "Negative prompt:", in any
    case, starts the negative prompt.

    Raises ArgumentError for fewer than three settings, or a name that the form cannot hold.
    """
    settings = {k: str(v) for k, v in parameters.items() if v is not None}
    prompt, negative = settings.pop(PROMPT, ""), settings.pop(NEGATIVE, "")
    for name in settings:
        if not re.fullmatch(NAME, name):
            raise ArgumentError(
                f"parameters has the name {name!r}; a name is 2 to {LONGEST_NAME} letters, digits, "
                "spaces, '-', '/' or '_', and begins with a letter or digit"
            )
    if len(settings) < FEWEST:
        raise ArgumentError(
            f"parameters has {len(settings)} settings ({', '.join(settings)}); with fewer than "
            f"{FEWEST} they are read back as a part of the prompt"
        )
    lines = [prompt.strip()]
    if negative.strip():
        lines.append(f"{NEGATIVE}: {negative.strip()}")
    lines.append(", ".join(f"{name}: {quote(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def parse_parameters(text: str) -> dict[str, str]:
    """Read `Prompt`, `Negative prompt` ("" if there is none) and every setting, all strings.

    The settings are on the last line that holds those of a picture (see ``infotext.is_settings``),
    on lines of their own, or behind the prompts on the same line. What stands behind them, such as
    lines of extensions, is read as further settings.
    """
    lines = [line.strip() for line in text.strip().split("\n")]
    start, settings = _settings(lines)
    if not settings and (before := _one_line(text)) is not None:
        prompts, settings = before
        return settings | prompts
    return settings | _prompts(lines[:start], bool(settings))


def names_settings(text: str) -> bool:
    """Whether a text, wherever it stands, says how a picture was made."""
    parsed = parse_parameters(text)
    return len(parsed) > 2 or f"\n{NEGATIVE}:" in f"\n{text}"


def _settings(lines: list[str]) -> tuple[int, dict[str, str]]:
    """Find where the settings begin, and read them and what stands behind."""
    pairs = [[] if _begins_with_prompt(line) else read_line(line) for line in lines]
    runs = _runs(lines, pairs)
    start = next((i for run in runs for i in run if is_settings(pairs[i])), None)
    if start is None:
        start = next((i for run in runs if (i := _one_a_line(pairs, run)) is not None), None)
    return (len(lines), {}) if start is None else (start, _merged(pairs[start:]))


def _runs(lines: list[str], pairs: list[list[tuple[str, str]]]) -> list[range]:
    """Return the runs of lines with settings, or with nothing, the last run first."""
    runs, end = [], len(lines)
    for i in reversed(range(-1, len(lines))):
        if i < 0 or (lines[i] and not pairs[i]):
            if i + 1 < end:
                runs.append(range(i + 1, end))
            end = i
    return runs


def _one_a_line(pairs: list[list[tuple[str, str]]], run: range) -> int | None:
    """Find the first line of settings that stand on lines of their own."""
    start = next((i for i in run if pairs[i] and is_telling(*pairs[i][0])), None)
    if start is None:
        return None
    block = [pair for line in pairs[start : min(run.stop, start + MOST_LINES)] for pair in line]
    return start if is_settings(block) else None


def _begins_with_prompt(line: str) -> bool:
    """Whether settings are joined to a prompt: "a cat Negative prompt: dog Steps: 20, …"."""
    before, steps, _ = line.partition("Steps:")
    if before[: len(NEGATIVE)].casefold() == NEGATIVE.casefold():
        return True
    joined = steps and before.strip(" ,") and not before.rstrip().endswith(",")
    return f"{NEGATIVE}:" in before or bool(joined)


def _one_line(text: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """Split a text whose lines were joined: (prompts, settings); None if it has no settings."""
    start = max((match.end() for match in ONE_LINE.finditer(text)), default=None)
    if start is None:
        return None
    pairs = [read_line(line.strip()) for line in text[start:].split("\n")]
    if not is_settings(pairs[0]):
        return None
    prompt, _, negative = text[:start].partition(f"{NEGATIVE}:")
    return {PROMPT: prompt.strip(), NEGATIVE: negative.strip()}, _merged(pairs)


def _merged(lines: list[list[tuple[str, str]]]) -> dict[str, str]:
    """Merge lines of settings; of those with one name, the first counts."""
    found: dict[str, str] = {}
    for line in lines:
        for name, value in line:
            if name not in (PROMPT, NEGATIVE):
                found.setdefault(name, value)
    return found


def _prompts(lines: list[str], settings_follow: bool) -> dict[str, str]:
    if settings_follow:
        ends = (i for i, line in enumerate(lines) if line.casefold().startswith(TEMPLATES))
        lines = lines[: next(ends, len(lines))]
    mark = f"{NEGATIVE}:"
    begins = (line[: len(mark)].casefold() == mark.casefold() for line in lines)
    start = next((i for i, begun in enumerate(begins) if begun), len(lines))
    negative = "\n".join(lines[start:])[len(mark) :]
    return {PROMPT: "\n".join(lines[:start]).strip(), NEGATIVE: negative.strip()}
