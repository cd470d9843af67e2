"""What the tests of training share."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from tests.helpers.toy_latents import save_parts


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> None:
    """Forget the number format of the run before: accelerate keeps it for the whole process."""
    AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved VAE and text encoder of ``toy_latents``."""
    return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def bases(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a family's model, with diffusers' pipeline."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(family: str) -> tuple[Path, Any]:
        if family not in made:
            _, theirs = models(family)
            made[family] = tmp_path_factory.mktemp(family), copy.deepcopy(theirs)
            theirs.save_pretrained(made[family][0])
        return made[family]

    return get


@pytest.fixture(scope="module")
def dogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, whose captions have new words, in either case, more than once, or alone."""
    folder = tmp_path_factory.mktemp("dogs")
    captions = ["a <dog>", "a zwilbo and a <dog>, <dog>", "<dog>", "a Zwilbo", "<DOG>", "zwilbo"]
    for i, caption in enumerate(captions):
        small = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
        picture = Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder
