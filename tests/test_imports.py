"""Imports go down only, also inside functions; every package that is imported is declared."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]

# From the bottom up. A module or package imports from lower layers, and from itself.
LAYERS = [
    {"_moved", "errors"},
    {"writing"},
    {"config", "layers"},
    {"memory", "request"},
    {"checkpoints", "clip", "scheduler", "taesd", "unet", "vae"},
    {"clip_vision"},
    {"fast", "guidance", "likelihood", "samplers", "text"},
    {"classes", "denoiser", "images"},  # images reads the samplers' names from files
    {"adapters", "control", "techniques"},
    {"latents"},
    {"loading"},
    {"output", "upscaling"},
    {"preparation"},
    {"run"},
    {"interface"},
    {"pipeline"},
    {"hires", "refiner"},
    {"training"},  # above the pipeline, since a run draws samples as its users will
    {"server"},
    {"cli"},
    {"__main__"},
]
LAYER = {part: height for height, layer in enumerate(LAYERS) for part in layer}
# Samplers see a noise level and nothing else of the model; other types only in annotations.
SAMPLERS_IMPORT = {"ldm.errors", "ldm.scheduler.Level"}
# ldm is written from scratch: these are what the tests compare it with.
REFERENCES = {"diffusers", "transformers"}
# Where the import has another name than the package.
PACKAGE_OF = {
    "PIL": "pillow",
    "cv2": "opencv_python_headless",
    "skimage": "scikit_image",
    "sklearn": "scikit_learn",
}


def imports(path: Path, root: Path) -> Iterator[tuple[int, bool, str, str]]:
    """Each import in a file: (line, only for annotations, module seen from `root`, name)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        typing_only = id(node) in annotations
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, typing_only, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(root).parts
            base = parents[: len(parents) - node.level] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, typing_only, module, alias.name


def violations(package: Path) -> list[str]:
    """What is wrong with the imports of the package at `package`, one line each."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        own = parts[0]
        if parts == ("__init__",):
            continue  # it names the public classes, and imports them when they are asked for
        if own not in LAYER:
            found.append(f"{path.name}: {own} is in no layer; add it to LAYERS in {__file__}")
            continue
        for line, typing_only, module, name in imports(path, package.parent):
            where = f"{'/'.join(parts)}.py:{line}"
            top, *below = module.split(".")
            if top in REFERENCES:
                found.append(f"{where} imports {top}, which only tests and tools may")
            if top != "ldm" or (not below and name == "__version__"):
                continue
            part = below[0] if below else name
            if part != own and LAYER.get(part, len(LAYERS)) >= LAYER[own]:
                found.append(f"{where} imports {part or 'ldm'}, which is not in a lower layer")
            elif (
                own == "samplers"
                and part != own
                and not typing_only
                and not {module, f"{module}.{name}"} & SAMPLERS_IMPORT
            ):
                found.append(f"{where} imports {part}; samplers may only import scheduler.Level")
    return found


def test_imports_go_down_only() -> None:
    assert violations(ROOT / "ldm") == []


@pytest.mark.parametrize(
    ("file", "code", "want"),
    [
        ("vae.py", "from ldm.layers import Attention\nimport torch, ldm.config", ""),
        ("vae.py", "from ldm.unet import UNet", "vae.py:1 imports unet"),
        ("vae.py", "import ldm.pipeline as p", "vae.py:1 imports pipeline"),
        ("vae.py", "def f():\n    if x:\n        from ldm import cli", "vae.py:3 imports cli"),
        ("vae.py", "from . import unet", "vae.py:1 imports unet"),
        ("vae.py", "from .unet import UNet", "vae.py:1 imports unet"),
        ("vae.py", "from ldm import Pipeline", "vae.py:1 imports Pipeline"),
        ("vae.py", "import ldm", "vae.py:1 imports ldm"),
        ("vae.py", "try:\n    import transformers.models\nexcept E: pass", "imports transformers"),
        ("training/loop.py", "from ..samplers import sample\nfrom .ema import EMA", ""),
        ("training/loop.py", "from ldm.pipeline import Pipeline", ""),
        ("pipeline.py", "from ldm.training.loop import train", "pipeline.py:1 imports training"),
        ("training/loop.py", "from ..cli.generate import main", "loop.py:1 imports cli"),
        ("cli/generate.py", "from ldm import __version__, images", ""),
        ("layers.py", "if TYPE_CHECKING:\n    from ldm.unet import UNet", "imports unet"),
        ("samplers/a.py", "from ldm.scheduler import Level\nfrom ldm.samplers.b import c", ""),
        (
            "samplers/a.py",
            "from ldm.scheduler import DDPMScheduler",
            "may only import scheduler.Level",
        ),
        ("samplers/a.py", "from ldm import config", "may only import scheduler.Level"),
        ("samplers/a.py", "if TYPE_CHECKING:\n    from ldm.scheduler import DDPMScheduler", ""),
        ("extra.py", "", "extra is in no layer"),
        ("__init__.py", "from ldm.pipeline import Pipeline", ""),
    ],
)
def test_the_rule_finds_what_it_should(tmp_path: Path, file: str, code: str, want: str) -> None:
    path = tmp_path / "ldm" / file
    path.parent.mkdir(parents=True)
    path.write_text(code)
    found = violations(tmp_path / "ldm")
    assert len(found) == bool(want), found
    assert want in "".join(found)


def test_every_imported_package_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        return {re.match(r"[\w\-]+", r).group().lower().replace("-", "_") for r in requirements}

    runtime = names(project["dependencies"])
    allowed = {
        "ldm": runtime,
        "tools": runtime | names(extras["train"]) | names(extras["test"]),
        "tests": runtime | names(extras["test"]) | {"tomli"},
    }
    ours = {"ldm", "tools", "tests"}
    # What an extra brings is imported where it is used, which says so where it is missing.
    optional = {
        ROOT / "ldm" / "training": names(extras["train"]),
        ROOT / "ldm" / "checkpoints": names(extras["gguf"]),
        ROOT / "ldm" / "cli": names(extras["completion"]) | names(extras["server"]),
        ROOT / "ldm" / "server": names(extras["server"])
        | names(extras["ray"])
        | {"pydantic", "starlette"},
        ROOT / "tests" / "server": names(extras["ray"]),
        ROOT / "ldm" / "upscaling": names(extras["upscaling"]),
        # No part of the extra "test": pip would put its torchvision beside a PyTorch that it does
        # not fit, and transformers imports that.
        ROOT / "tests": names(extras["upscaling"]) | {"torchvision"},
        ROOT / "tests" / "fuzz": {"atheris"},  # no part of the tests: see its guided.py
    }
    missing = {
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for folder, declared in allowed.items()
        for path in (ROOT / folder).rglob("*.py")
        for line, _, module, _ in imports(path, ROOT)
        if (top := module.split(".")[0])
        and top not in sys.stdlib_module_names | ours
        and PACKAGE_OF.get(top, top) not in declared
        and not any(top in known and base in path.parents for base, known in optional.items())
    }
    assert missing == set()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ldm", {"torch", "numpy", "PIL", "tokenizers", "huggingface_hub"}),
        ("ldm.images", {"torch"}),
        ("ldm.control.source", {"torch"}),
        ("ldm.upscaling", {"torch", "spandrel"}),
        ("ldm.config", {"torch", "numpy"}),
        ("ldm.request", {"torch", "numpy", "PIL"}),
        ("ldm.text.tokenizer", {"torch", "numpy", "transformers"}),
        ("ldm.cli.generate", {"torch", "numpy"}),
        ("ldm.cli.train", {"torch", "numpy"}),
    ],
)
def test_light_modules_do_not_import_heavy_ones(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*({absent} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


# What drawing a plain picture does without. Modules of PyTorch that it imports itself are not here.
NOT_TO_DRAW = {
    *("accelerate", "huggingface_hub", "scipy", "torchvision", "matplotlib", "gguf"),
    *("torch._dynamo", "torch._inductor", "sympy", "networkx", "PIL.ImageFont"),
    *("ldm.training", "ldm.server", "ldm.upscaling", "ldm.hires", "ldm.refiner"),
    *("ldm.fast.int8", "ldm.fast.fp8", "ldm.fast.offload", "ldm.fast.sequential"),
    "ldm.fast.int8_weights",
    "ldm.techniques.style_aligned",
    *("ldm.loading.outline", "ldm.loading.write_file", "ldm.loading.image_encoder"),
    *("ldm.checkpoints.gguf_header", "ldm.checkpoints.pickle_header"),
    *("ldm.cli.dry_run", "ldm.cli.train", "ldm.cli.completion", "ldm.images.sheets"),
}
MOST_MODULES = 260  # of ldm; each takes about 0.4 ms, and 0.9 where Python keeps no bytecode


def test_drawing_imports_little(tmp_path: Path) -> None:
    """Of a whole run of ``ldm generate``, not only of its imports at the top."""
    options = ["a red car", "--steps", "1", "--quiet", "--output", str(tmp_path / "a.png")]
    code = (
        "import sys\nfrom ldm.cli.main import main\n"
        f"assert main(['generate', *{options}]) == 0\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(result.stdout.splitlines()[-1].split())
    assert "ldm.unet" in imported
    assert imported & NOT_TO_DRAW == set()
    own = {name for name in imported if name.split(".")[0] == "ldm"}
    assert len(own) <= MOST_MODULES
