"""Old names of modules, which work for one release: importing one warns with the new name.

Delete this file, its lines in ``ldm/__init__.py`` and ``ldm/loading``, and tests/test_moved.py with
the release after 0.2.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # the real one takes 7 ms to import

MOVED = {
    "ldm.assets": "ldm.checkpoints.assets",
    "ldm.betas": "ldm.scheduler",
    "ldm.canvas": "ldm.techniques.outpainting",
    "ldm.classifier": "ldm.classes.classifier",
    "ldm.classifier_guidance": "ldm.classes.guidance",
    "ldm.codec": "ldm.latents",
    "ldm.conditioning": "ldm.text.conditioning",
    "ldm.defaults": "ldm.config.generation",
    "ldm.devices": "ldm.loading.devices",
    "ldm.metadata": "ldm.images.metadata",
    "ldm.preview": "ldm.techniques.preview",
    "ldm.prompts": "ldm.text.grammar",
    "ldm.recipe": "ldm.images.generation_info",
    "ldm.tokenizer": "ldm.text.tokenizer",
}
RENAMED = {
    "ldm.canvas.widen": "extend_canvas",
    "ldm.codec.decode": "decode_latents",
    "ldm.codec.encode": "encode_pictures",
    "ldm.conditioning.spread": "negative_for_each",
    "ldm.recipe.Recipe": "GenerationInfo",
    "ldm.recipe.read_recipe": "read_generation_info",
}


class OldNames(Loader):
    """Finder and loader of the old names, after all other finders."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find one of ``MOVED``; None for any other."""
        return ModuleSpec(name, OldNames()) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python make an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Warn, and make the new module's names available in the old one."""
        old, new = module.__name__, MOVED[module.__name__]
        message = f"{old} is now {new}; the old name goes with the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        found = import_module(new)

        def get(name: str) -> object:
            renamed = RENAMED.get(f"{old}.{name}", name)
            value = getattr(found, renamed)
            if renamed != name:
                message = f"{old}.{name} is now {new}.{renamed}"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
            return value

        module.__getattr__ = get  # type: ignore[method-assign]  # PEP 562


def names_of_module(package: str, places: Mapping[str, str]) -> Callable[[str], object]:
    """Make the ``__getattr__`` of a package that was a module; ``places``: name → module now."""

    def get(name: str) -> object:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        message = f"{package}.{name} is now {places[name]}.{name}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(import_module(places[name]), name)

    return get


def install() -> None:
    """Make ``import`` find the old names."""
    sys.meta_path.append(OldNames())
