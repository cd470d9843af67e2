"""Samplers and schedules by their names: ours, and those of other programs.

Those are A1111's labels, diffusers' classes, k-diffusion's functions, and what ComfyUI, InvokeAI,
SD.Next, NovelAI, Fooocus and stable-diffusion.cpp write into pictures. A name that means a method
which is not here is never taken for a similar one.
"""

from __future__ import annotations

from collections.abc import Iterable

from ldm.errors import ArgumentError, did_you_mean
from ldm.samplers.schedules import SCHEDULES
from ldm.samplers.table import SAMPLERS

# Names without case and signs (see _plain) → ours.
OTHER_NAMES = {
    "plms": "pndm",
    "lmsd": "lms",
    "kdpm2": "dpm2",
    "kdpm2a": "dpm2_a",
    "unipcbh2": "unipc",
    "dpmsde": "dpmpp_sde",  # SD.Next's name of diffusers' class
    "dpmsolversde": "dpmpp_sde",
    "ddimparallel": "ddim",  # the same steps, many at once
    "ddpmparallel": "ddpm",
}
OTHER_SCHEDULES = {
    "uniform": "normal",
    "discrete": "normal",  # stable-diffusion.cpp
    "native": "normal",  # NovelAI
    "default": "normal",
    "polyexponential": "exponential",  # of k-diffusion, whose ρ is 1
    "alignyoursteps": "ays",
    "alignyourstepsxl": "ays_xl",
}


def find_sampler(text: str) -> tuple[str, str | None]:
    """Find (key of SAMPLERS, key of SCHEDULES or None) for a name, in any case.

    Understands our names ("dpmpp_2m") and other programs' ("DPM++ 2M", "k_euler_ancestral",
    "dpmpp_2m_sde_gpu", "EulerDiscreteScheduler"), and a schedule behind any of them
    ("dpmpp_2m_karras", "DPM++ 2M Karras", "dpmpp_2m_k"). Raises ArgumentError, with the nearest
    names, for any other.
    """
    plain = _plain(text)
    if name := _sampler(plain):
        return name, None
    for ending, schedule in (SCHEDULE_OF | {"k": "karras"}).items():  # _k: InvokeAI
        if plain.endswith(ending) and (name := _sampler(plain.removesuffix(ending))):
            return name, schedule
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


def _sampler(plain: str) -> str | None:
    """Find the sampler of a name without case and signs; None for no such name."""
    name = plain.removesuffix("scheduler").removesuffix("gpu")  # where it draws its noise
    name = name.replace("ancestral", "a")
    for prefix in ("sample", "k", ""):
        bare = name.removeprefix(prefix)
        if bare in SAMPLER_OF and (prefix == "" or bare != name):
            return SAMPLER_OF[bare]
    return SAMPLER_OF.get(plain)


def _plain(text: str) -> str:
    """Strip case, spaces and signs; the + that distinguishes DPM++ from DPM becomes "p"."""
    kept = text.casefold().replace("+", "p")
    return "".join(c for c in kept if c.isalnum())


def _unknown(what: str, text: str, names: Iterable[str], plain: dict[str, str]) -> ArgumentError:
    if hint := did_you_mean(_plain(text), plain, count=4):
        hint += " ldm-generate --list-samplers has all"
    else:
        hint = f"expected one of {', '.join(names)}"
    return ArgumentError(f"{what} is {text!r:.80}; {hint}")


SAMPLER_OF = {
    _plain(row.class_name): key for key, row in reversed(SAMPLERS.items()) if row.class_name
}
SAMPLER_OF |= {name.removesuffix("scheduler"): key for name, key in SAMPLER_OF.items()}
SAMPLER_OF |= {_plain(row.label): key for key, row in SAMPLERS.items()} | OTHER_NAMES
SAMPLER_OF |= {_plain(key): key for key in SAMPLERS}
SCHEDULE_OF = {_plain(row.label): key for key, row in SCHEDULES.items()} | OTHER_SCHEDULES
SCHEDULE_OF |= {_plain(key): key for key in SCHEDULES}
SCHEDULE_OF = dict(sorted(SCHEDULE_OF.items(), key=lambda item: -len(item[0])))
