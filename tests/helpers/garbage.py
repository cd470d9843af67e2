"""Garbage of the tests, collected without looking through all imported modules each time."""

import gc
import sys

MANY = 100  # imported modules that are worth a collection
_passed_over = 0  # modules that collections pass over


def pass_over_modules() -> None:
    """Let collections pass over all objects that are there, if many modules were imported.

    A module's objects live as long as the process, and torch's, diffusers' and transformers' are
    half a million: to look through them takes a collection a third of a second, and each end of a
    training run collects.
    """
    global _passed_over
    if len(sys.modules) - _passed_over >= MANY:
        _passed_over = len(sys.modules)
        gc.collect()
        gc.freeze()
