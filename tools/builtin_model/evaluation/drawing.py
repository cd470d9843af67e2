"""Draw the pictures of prompts, or take those that an earlier run drew."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline
from tools.builtin_model.evaluation.prompts import Prompt

DRAWN = "drawn.json"
Log = Callable[[str], None]


def draw(
    pipe: Pipeline,
    wanted: Sequence[Prompt],
    seeds: Sequence[int],
    arguments: argparse.Namespace,
    log: Log,
    keep: Callable[[int, Image.Image], None] = lambda number, picture: None,
) -> tuple[list[Image.Image], float]:
    """Draw a picture of each prompt, each from its seed; returns the seconds for one, too.

    `keep` gets the number of each picture and the picture as soon as it is drawn.
    """
    pictures: list[Image.Image] = []
    started = time.monotonic()
    for start in range(0, len(wanted), arguments.batch_size):
        some = slice(start, start + arguments.batch_size)
        pictures += pipe(
            [prompt.text for prompt in wanted[some]],
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[some]],
            num_inference_steps=arguments.num_inference_steps,
            guidance_scale=arguments.guidance_scale,
            sampler=arguments.sampler,
        ).images
        for number in range(start, len(pictures)):
            keep(number, pictures[number])
        log(f"{len(pictures)}/{len(wanted)} pictures, {time.monotonic() - started:.0f} s")
    return pictures, (time.monotonic() - started) / max(len(wanted), 1)


def draw_missing(
    pipe: Pipeline,
    wanted: Sequence[Prompt],
    seeds: Sequence[int],
    arguments: argparse.Namespace,
    settings: dict[str, Any],
    log: Log,
) -> tuple[list[Image.Image], float | None]:
    """Do as ``draw``, with the pictures in the folder `arguments.pictures`, which gets the others.

    The seconds are None where nothing was drawn. Raises ArgumentError where the folder holds
    pictures that were drawn with other settings.
    """
    folder = arguments.pictures
    check(folder, settings)
    paths = [folder / f"{seed}.png" for seed in seeds]
    texts: dict[str, str] = json.loads((folder / DRAWN).read_text())["prompts"]
    for seed, prompt in zip(seeds, wanted, strict=True):
        if texts.setdefault(str(seed), prompt.text) != prompt.text:
            raise ArgumentError(
                f"--pictures {folder} has {texts[str(seed)]!r} from the seed {seed}, where "
                f"{prompt.text!r} is asked for now; choose another folder"
            )
    write(folder, settings, texts)
    missing = [i for i, path in enumerate(paths) if not path.is_file()]
    log(f"{len(paths) - len(missing)} pictures of {folder} are taken, {len(missing)} are drawn")
    _, seconds = draw(
        pipe,
        [wanted[i] for i in missing],
        [seeds[i] for i in missing],
        arguments,
        log,
        lambda number, picture: picture.save(paths[missing[number]]),
    )
    pictures = [Image.open(path).convert("RGB") for path in paths]
    return pictures, seconds if missing else None


def check(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or check that its pictures were drawn with these settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DRAWN
    if not path.exists():
        write(folder, settings, {})
        return
    found = json.loads(path.read_text())["settings"]
    for name, value in settings.items():
        if found.get(name) != value:
            raise ArgumentError(
                f"the pictures of --pictures {folder} were drawn with {name} {found.get(name)}, "
                f"not {value}; choose another folder"
            )


def write(folder: Path, settings: dict[str, Any], texts: dict[str, str]) -> None:
    """Write what the pictures were drawn with, whole or not at all."""
    draft = folder / f"{DRAWN}.part"
    draft.write_text(json.dumps({"settings": settings, "prompts": texts}, indent=1) + "\n")
    draft.replace(folder / DRAWN)
