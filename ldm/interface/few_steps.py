"""Few steps: the LoRA in a model's folder that makes four steps do, without guidance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ldm.checkpoints.source import file_of_lora
from ldm.config.arguments import checked
from ldm.config.generation import FILE, Defaults, FewSteps
from ldm.errors import ArgumentError, CheckpointError, LDMError
from ldm.loading.model import Model
from ldm.loading.turns import changes_model
from ldm.samplers import SAMPLERS, from_config
from ldm.samplers.names import find_sampler
from ldm.scheduler import DDPMScheduler

T = TypeVar("T", bound="FewStepsModel")


class FewStepsModel(Model):
    """A model that may have a LoRA for few steps.

    Attributes:
        many_steps: the scheduler and the defaults from before ``use_few_steps``; None if that is
            off.
    """

    many_steps: tuple[DDPMScheduler, Defaults] | None = None

    @checked()
    @changes_model
    def use_few_steps(self: T, on: bool = True) -> T:
        """Draw in few steps or, with ``on`` False, as before; return the pipeline.

        The LoRA in the model's folder is put onto the weights, and the sampler, the number of
        steps and the guidance scale that a request leaves out become those of ``few_steps`` in the
        folder's `generation_config.json`: as a rule ``lcm``, 4 and 1. Other LoRAs add to it, and
        ``set_adapters`` and ``unload_lora_weights`` leave it alone. Without it, the weights are
        bit-identical to those from before.
        Raises ArgumentError for a model without ``few_steps``, CheckpointError for settings or a
        file that do not fit; then nothing has changed.
        """
        if on == self.few_steps:
            return self
        if not on:
            self.loras.use_own(None)
            assert self.many_steps is not None  # see below
            (self.scheduler, self.defaults), self.many_steps = self.many_steps, None
            return self
        settings = self.own_few_steps
        if settings is None or self.folder is None:
            raise ArgumentError(
                f"this model has no LoRA for few steps (few_steps in its {FILE}); load one with "
                'load_lora_weights, and draw with sampler="lcm", num_inference_steps=4 and '
                "guidance_scale=1"
            )
        scheduler = self._few_steps_scheduler(settings, self.folder / FILE)
        self.loras.use_own(self.loras.read(few_steps_file(self.folder, settings)))
        self.many_steps = self.scheduler, self.defaults
        self.scheduler = scheduler
        self.defaults = replace(
            self.defaults,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        )
        return self

    def _few_steps_scheduler(self, settings: FewSteps, path: Path) -> DDPMScheduler:
        """Return the model's noise schedule with the sampler of few steps."""
        where = f"{path}: few_steps: sampler is {settings.sampler!r:.80}"
        try:
            name, _ = find_sampler(settings.sampler)
            config = replace(self.scheduler.config, sampler_class=str(SAMPLERS[name].class_name))
            found = from_config(config).name
        except LDMError as error:
            raise CheckpointError(f"{where}, which this model cannot draw with: {error}") from None
        if found != name:  # of those that more settings of a scheduler tell apart
            raise CheckpointError(f"{where}; expected one such as lcm, tcd, ddim or euler")
        return DDPMScheduler(config)


def few_steps_file(folder: Path, settings: FewSteps) -> Path:
    """Return the file of the LoRA that a model's settings name.

    Raises CheckpointError for one that is missing, or not in the model's folder.
    """
    where = f"{folder / FILE}: few_steps: lora is {settings.lora!r:.200}"
    path = folder / settings.lora
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        there = path.exists()
    except (OSError, ValueError):  # a name that no file can have
        inside, there = True, False
    if not settings.lora or not inside:
        raise CheckpointError(f"{where}; expected a file or a folder in the model's folder")
    if not there:
        raise CheckpointError(
            f"{where}, which does not exist; get the model's folder again, or take few_steps out"
        )
    return file_of_lora(path)
