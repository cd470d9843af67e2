"""The progress bar of a call in Python: on by default where somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from ldm.run import Progress


def show_progress(
    steps: Iterable[Progress], shown: bool | None, options: Mapping[str, Any]
) -> Iterator[Progress]:
    """Yield the steps, with a bar on stderr.

    shown: None shows it in a notebook and on a terminal. options: of tqdm, which decide where they
    say ``disable``.
    """
    hidden = not (is_watched() if shown is None else shown)
    settings = {"unit": "step", "disable": hidden} | dict(options)
    if shown is False:
        settings["disable"] = True
    if settings["disable"]:
        yield from steps
        return
    if in_notebook() and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    with tqdm(**settings) as bar:
        for progress in steps:
            bar.total = progress.steps
            bar.update(progress.step - bar.n)
            yield progress


def is_watched() -> bool:
    """Whether stderr is a terminal, or shown in a notebook."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


def in_notebook() -> bool:
    """Whether this runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")
