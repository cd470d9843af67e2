"""Write the API reference: a page of every module, from its docstrings, with pdoc.

    python -m tools.api_reference --output build/api

Warnings are errors: a name in ``__all__`` that cannot be imported, a type that cannot be read.
"""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import sys
import typing
import warnings
from pathlib import Path
from types import ModuleType

from ldm.cli.common import EXIT_CODES, run
from ldm.cli.parsing import Parser
from ldm.errors import ArgumentError


def import_all(name: str) -> list[ModuleType]:
    """Import a package and every module below it, but for programs (``__main__``)."""
    package = importlib.import_module(name)
    below = pkgutil.walk_packages(package.__path__, f"{name}.")
    names = [module.name for module in below if not module.name.endswith("__main__")]
    return [package, *map(importlib.import_module, names)]


def complete(modules: list[ModuleType]) -> None:
    """Define what modules have only for type checkers, and what they import when it is first used.

    An alias such as ``tuple["Level", "Level"]`` is read in modules that do not know the name, so
    each gets the names of all.
    """
    names: dict[str, object] = {}
    for module in modules:
        for statement in ast.parse(inspect.getsource(module)).body:
            if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
                imports = ast.Module(statement.body, type_ignores=[])
                before = dict(vars(module))
                exec(compile(imports, str(module.__file__), "exec"), vars(module))
                now = vars(module)
                now.update({k: v for k, v in before.items() if is_made_in(module, v)})
                names.update({k: now[k] for k in now if now[k] is not before.get(k)})
        for name in getattr(module, "__all__", ()):
            vars(module)[name] = getattr(module, name)
    for module in modules:
        for name, value in names.items():
            vars(module).setdefault(name, value)
        for member in list(vars(module).values()):
            if is_made_in(module, member):
                resolve(member)


def is_made_in(module: ModuleType, value: object) -> bool:
    """Whether a value is a class that a module itself has made."""
    return isinstance(value, type) and value.__module__ == module.__name__


def resolve(kind: type) -> None:
    """Show the signatures of a class as ``inspect`` has them.

    pdoc reads the types of made methods without the names that their module knows, and looks
    behind a decorator. It does not see the fields of a pydantic class that has no source.
    """
    fields = getattr(kind, "__pydantic_fields__", {})
    for name in fields.keys() & vars(kind).get("__annotations__", {}):
        type.__setattr__(kind, name, fields[name])
    made = kind.__init__ if dataclasses.is_dataclass(kind) else kind.__new__
    if dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        hints = typing.get_type_hints(kind)
        made.__annotations__ = {k: hints.get(k, v) for k, v in made.__annotations__.items()}
    for member in vars(kind).values():
        if hasattr(member, "__signature__") and hasattr(member, "__wrapped__"):
            del member.__wrapped__
            member.__signature__ = evaluated(member.__signature__)


def evaluated(signature: inspect.Signature) -> inspect.Signature:
    """Read the types of a request's fields with the names that ``ldm.request`` knows."""
    known = vars(sys.modules["ldm.request"])
    parameters = [
        parameter.replace(annotation=eval(parameter.annotation, known))
        if isinstance(parameter.annotation, str)
        else parameter
        for parameter in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters)


def write(folder: Path, package: str = "ldm") -> int:
    """Write the pages; return how many. Raises ArgumentError without pdoc, and for a warning."""
    try:
        import pdoc
    except ImportError:
        raise ArgumentError('the API reference needs pdoc: pip install -e ".[test]"') from None
    modules = import_all(package)
    complete(modules)
    pages = [module.__name__ for module in modules if "._" not in module.__name__]
    pdoc.render.configure(docformat="google", footer_text=package)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # pdoc finds the modules below a package by itself, unless that has __all__.
        warnings.filterwarnings("ignore", message="The module specification")
        warnings.filterwarnings("ignore", message="Cannot determine .*_is_param")  # PyTorch's own
        # Types of Pillow's own members, some of them inherited.
        warnings.filterwarnings("ignore", message=r".*(PIL[.]|IPython|ImagingCore|ImagePalette)")
        try:
            pdoc.pdoc(*pages, "!.*__main__", output_directory=folder)
        except UserWarning as warning:
            raise ArgumentError(f"pdoc warns: {warning}") from warning
    return len(pages)


def main(argv: list[str] | None = None) -> int:
    """Write the API reference; returns the exit code."""
    parser = Parser(description=__doc__.splitlines()[0], epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("build/api"), help="default: build/api")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(argv)

    def body() -> None:
        count = write(arguments.output)
        print(f"{count} modules: {arguments.output / 'index.html'}")

    return run(body, arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
