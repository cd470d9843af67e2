"""Arguments that are defined once, as fields of a dataclass, and functions that take them.

A field holds its default and range (``ldm.config.settings``), and what is said of it everywhere:
its line of help, the names of its option, its label in metadata.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from ldm.config.checking import fits, in_words, shown
from ldm.config.diffusers_habits import translate
from ldm.config.forms import Form
from ldm.errors import ArgumentError

P = ParamSpec("P")
M = TypeVar("M")  # a model
Q = TypeVar("Q")  # a request
R = TypeVar("R")

SAME: Any = object()


@dataclass(frozen=True)
class Argument:
    """The documentation of an argument, and its names.

    Attributes:
        help: one line; ``{default}`` stands for the default.
        options: of ``ldm-generate``; () for an argument of Python only.
        command_default: of the option, if it differs from Python's default.
        metavar: stands for the value in the help.
        group: the heading that the option stands under in the help.
        label: of the setting in the text that A1111's web UI writes into pictures; "" for none.
        axis: of an X/Y plot in that text; "" is the name itself.
        recorded: when it is written into a picture's settings: "always", if it was "changed" from
            its default, in "another" form (the prompt with its LoRAs, the digest of an image), or
            "never", as it does not change the picture.
        command_offset: what the command line and files count more than Python does.
    """

    help: str
    options: tuple[str, ...] = ()
    command_default: Any = SAME
    metavar: str | None = None
    group: str = ""
    label: str = ""
    axis: str = ""
    recorded: Literal["always", "changed", "another", "never"] = "changed"
    command_offset: int = 0


def argument(
    default: Any, help: str, *options: str, kind: str = "", form: Form | None = None, **names: Any
) -> Any:
    """Make a field of a ``Request``.

    default: the value, or a field of ``within`` or ``choice``. kind: its type, as errors call it.
    form: what an object of another library has to be. names: further ones of ``Argument``.
    """
    field = default
    if not isinstance(field, dataclasses.Field):
        field = dataclasses.field(default=default)
    about = {"argument": Argument(help, options, **names), "kind": kind, "form": form}
    return dataclasses.field(default=field.default, metadata={**field.metadata, **about})


def about(field: dataclasses.Field[Any]) -> Argument:
    """Return the documentation and the names of a field."""
    return field.metadata["argument"]


def signature(cls: type[Any], function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function of (model, request) that takes the request's fields."""
    kinds = inspect.Parameter
    model, *_ = inspect.signature(function).parameters.values()
    fields = [
        kinds(
            field.name,
            kinds.KEYWORD_ONLY if field.kw_only else kinds.POSITIONAL_OR_KEYWORD,
            default=field.default,
            annotation=field.type,
        )
        for field in dataclasses.fields(cls)
    ]
    model = model.replace(kind=kinds.POSITIONAL_ONLY)
    returns = inspect.signature(function).return_annotation
    return inspect.Signature([model, *fields], return_annotation=returns)


def takes(
    request: Callable[P, Q],
) -> Callable[[Callable[[M, Q], R]], Callable[Concatenate[M, P], R]]:
    """Have a function of (model, request) take the request's fields one by one.

    @takes(Request)
    def draw(model: Model, request: Request) -> Output: ...

    draw(model, "a red car", seed=1)

    Type checkers and editors see all fields with their types, ``inspect.signature`` too.
    """
    assert isinstance(request, type)

    def decorate(function: Callable[[M, Q], R]) -> Callable[Concatenate[M, P], R]:
        @functools.wraps(function)
        def call(model: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return function(model, request(*args, **read_arguments(request, function, kwargs)))

        call.__signature__ = signature(request, function)  # type: ignore[attr-defined]
        lines = [f"    {field.name}: {about(field).help}" for field in dataclasses.fields(request)]
        call.__doc__ = "\n".join([function.__doc__ or "", "Args:", *lines])
        return call

    return decorate


def read_arguments(cls: type[Any], function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Return keyword arguments as a request names them; None is every argument's default.

    Habits of diffusers are translated. Raises UnknownArgumentError for a name that is none.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    options = {
        option.lstrip("-").replace("-", "_"): name
        for name, field in fields.items()
        for option in about(field).options
    }
    name = "pipe" if function.__name__ == "__call__" else function.__name__
    found = translate("call", name, given, fields, options)
    # Without a prompt, but for embeddings, the request is refused: it is no empty picture.
    return {name: value for name, value in found.items() if value is not None or name == "prompt"}


def checked(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function refuse arguments that are not of the types that they are annotated with.

    names: of these arguments alone; without any, of all. Raises ArgumentError.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        form = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            hints = function_hints(function)
            for name, value in form.bind(*args, **kwargs).arguments.items():
                hint = hints.get(name)
                if hint is None or (names and name not in names):
                    continue
                values = value if form.parameters[name].kind in VARIADIC else [value]
                for one in values:
                    if not fits(one, hint):
                        raise ArgumentError(f"{name} is {shown(one)}; expected {in_words(hint)}")
            return function(*args, **kwargs)

        return call

    return decorate


VARIADIC = (inspect.Parameter.VAR_POSITIONAL,)


@functools.cache
def function_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's arguments; **options and the object itself have none."""
    parameters = inspect.signature(function).parameters.values()
    given = {
        one.name: one.annotation
        for one in parameters
        if one.name not in ("self", "cls") and one.kind is not inspect.Parameter.VAR_KEYWORD
    }
    arguments = type("Arguments", (), {"__annotations__": given})  # what it returns is not read
    return typing.get_type_hints(arguments, inspect.unwrap(function).__globals__)
