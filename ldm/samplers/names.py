"""Samplers and schedules by their names: ours, diffusers' and A1111's."""

from __future__ import annotations

from collections.abc import Iterable

from ldm.errors import ArgumentError, did_you_mean
from ldm.samplers.schedules import SCHEDULES
from ldm.samplers.table import SAMPLERS

OTHER_NAMES = {"plms": "pndm", "eulerancestral": "euler_a", "dpm2ancestral": "dpm2_a"}
OTHER_SCHEDULES = {"uniform": "normal", "ays": "ays", "alignyoursteps": "ays"}


def find_sampler(text: str) -> tuple[str, str | None]:
    """Find (key of SAMPLERS, key of SCHEDULES or None) for a name, in any case.

    Understands our names ("dpmpp_2m"), A1111's labels ("DPM++ 2M"), diffusers' classes, and a
    schedule behind any of them ("dpmpp_2m_karras", "DPM++ 2M Karras"). Raises ArgumentError, with
    the nearest names, for any other.
    """
    plain = _plain(text)
    if plain in SAMPLER_OF:
        return SAMPLER_OF[plain], None
    for ending, schedule in SCHEDULE_OF.items():
        name = plain.removesuffix(ending)
        if name != plain and name in SAMPLER_OF:
            return SAMPLER_OF[name], schedule
    raise unknown_sampler(text)


def find_schedule(text: str) -> str:
    """Find the key of SCHEDULES for a name or A1111 label. Raises ArgumentError for any other."""
    plain = _plain(text)
    if plain not in SCHEDULE_OF:
        raise _unknown("schedule", text, SCHEDULES, SCHEDULE_OF)
    return SCHEDULE_OF[plain]


def unknown_sampler(text: str) -> ArgumentError:
    """Make the error for a name that no sampler has; it offers the nearest ones."""
    return _unknown("sampler", text, SAMPLERS, SAMPLER_OF)


def listing() -> str:
    """List all samplers and schedules, as ``ldm-generate --list-samplers`` prints them."""
    rows = [("sampler", "A1111's label", "calls a step", "diffusers' class")]
    for name, row in SAMPLERS.items():
        rows.append((name, row.label, str(row.calls), row.class_name or "none"))
    rows += [("", "", "", ""), ("schedule", "A1111's label", "", "")]
    rows += [(name, row.label, "", row.about) for name, row in SCHEDULES.items()]
    return "\n".join(f"{a:13} {b:20} {c:13} {d}".rstrip() for a, b, c, d in rows)


def _plain(text: str) -> str:
    """Strip case, spaces and signs; the + that distinguishes DPM++ from DPM becomes "p"."""
    kept = text.casefold().replace("+", "p")
    return "".join(c for c in kept if c.isalnum())


def _unknown(what: str, text: str, names: Iterable[str], plain: dict[str, str]) -> ArgumentError:
    if hint := did_you_mean(_plain(text), plain, count=4):
        hint += " ldm-generate --list-samplers has all"
    else:
        hint = f"expected one of {', '.join(names)}"
    return ArgumentError(f"{what} is {text!r}; {hint}")


SAMPLER_OF = {
    _plain(row.class_name): key for key, row in reversed(SAMPLERS.items()) if row.class_name
}
SAMPLER_OF |= {_plain(row.label): key for key, row in SAMPLERS.items()} | OTHER_NAMES
SAMPLER_OF |= {_plain(key): key for key in SAMPLERS}
SCHEDULE_OF = {_plain(row.label): key for key, row in SCHEDULES.items()} | OTHER_SCHEDULES
SCHEDULE_OF |= {_plain(key): key for key in SCHEDULES}
