"""``--fast``: few steps where the model has a LoRA for them, else modes that draw near pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.model_folder import find_model
from ldm.cli.fields import DEFAULTS
from ldm.config.generation import own_few_steps
from ldm.errors import ArgumentError

# For other models; int8 where it gains.
MODES = {"guidance_interval": (0.28, 5.42), "deep_cache": 3, "int8": None}
OFF = {name: DEFAULTS.get(name, False) for name in MODES}
# What few steps bring along.
BROUGHT = ("num_inference_steps", "sampler", "schedule", "guidance_scale")


class Fast(argparse.Action):
    """The option ``--fast``, which takes back what stands before it; see ``settle_fast``."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any
    ) -> None:
        for name in ("few_steps", *MODES):
            setattr(namespace, name, None)
        setattr(namespace, self.dest, True)


def settle_fast(arguments: argparse.Namespace, given: Mapping[str, Any]) -> None:
    """Replace ``--fast`` by what it stands for with this model.

    given: the options that take precedence over it, and over what few steps bring along.
    Raises ArgumentError for ``--few-steps`` with a model that has no LoRA for them.
    """
    few = given.get("few_steps")
    if arguments.fast:
        if few is None:
            few = arguments.refiner is None and has_few_steps(arguments)
        modes = OFF if few else MODES
        vars(arguments).update({n: value for n, value in modes.items() if n not in given})
        arguments.few_steps = few
    elif few and not has_few_steps(arguments):
        raise ArgumentError(
            f"--few-steps: {arguments.model or 'the model'} has no LoRA for few steps, which "
            "few_steps in its generation_config.json names; give one: --lora FILE --sampler lcm "
            "--steps 4 -g 1"
        )
    if few:
        vars(arguments).update({name: None for name in BROUGHT if name not in given})


def has_few_steps(arguments: argparse.Namespace) -> bool:
    """Whether the model is a folder with a LoRA for few steps."""
    model = find_model(arguments.model, arguments.model_dir)
    folder = asset_path("weights") if model is None else Path(model).expanduser()
    return own_few_steps(folder) is not None
