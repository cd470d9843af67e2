"""Errors for users: the command line prints their message on one line, without a traceback."""


class LDMError(Exception):
    """Base of all errors that this package raises on purpose."""


class ArgumentError(LDMError, ValueError):
    """An argument has a value that cannot work (command line: exit code 2)."""


class CheckpointError(LDMError, RuntimeError):
    """A model folder, weight file or config is missing, broken or not supported (exit code 1)."""


class ImageError(LDMError, OSError):
    """An image cannot be read or written (exit code 1)."""


class DataError(LDMError):
    """A data set is incomplete, broken or holds nothing usable (exit code 1)."""


class TrainingError(LDMError):
    """A training run cannot continue; the message names the step (exit code 1)."""
