"""Errors that answer a client, each with its HTTP status."""

from __future__ import annotations

from ldm.errors import (
    ArgumentError,
    CheckpointError,
    ImageError,
    LDMError,
    NotEnoughMemoryError,
    did_you_mean,
)


class ServerError(LDMError):
    """A request that is refused.

    Attributes:
        status: of the HTTP answer. argument: the name of what is wrong; None if it is no argument.
    """

    status = 400

    def __init__(
        self, message: str, argument: str | None = None, status: int | None = None
    ) -> None:
        """status: None as of the class."""
        super().__init__(message)
        self.argument = argument
        self.status = self.status if status is None else status


class UnknownNameError(ServerError):
    """A model, a LoRA or a picture of a name that is not there."""

    status = 404


class BusyError(ServerError):
    """The queue is full, or the server is stopping."""

    status = 503


class CancelledError(ServerError):
    """The job was cancelled before it had a picture."""

    status = 409


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error: what a client got wrong is 4xx."""
    if isinstance(error, ServerError):
        return error.status
    if isinstance(error, ArgumentError | ImageError):
        return 400
    if isinstance(error, CheckpointError):
        return 422  # a file that the server's owner put there does not fit
    if isinstance(error, NotEnoughMemoryError | MemoryError):
        return 507
    return 500


def unknown(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """Return the error for a name that is not listed, with the nearest ones.

    kind: "model", "lora", …, which is also the name of the argument.
    """
    hint = did_you_mean(name, known, count=3) or f"there are: {', '.join(known[:8]) or 'none'}"
    return UnknownNameError(f"{kind} {name!r:.100} is not known; {hint}", kind)
