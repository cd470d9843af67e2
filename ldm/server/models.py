"""The model in memory: loaded by name, with the adapters that a drawing names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import torch

from ldm.adapters.lora_scale import TagScale
from ldm.config.speed import away, is_optimized
from ldm.errors import LDMError
from ldm.images.generation_info import OWN_CONTROLNET
from ldm.pipeline import Pipeline, Progress
from ldm.server.drawing import Drawing, plain_arguments
from ldm.server.errors import BusyError
from ldm.server.library import Library

log = logging.getLogger(__name__)
MOST_LORAS = 8  # that stay in memory beside those in use


class LoadedModel:
    """One model of the library at a time.

    Attributes:
        lock: held by whoever uses it or changes it: the worker, for a whole batch.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self.lock = threading.RLock()
        self.name: str | None = None
        self.pipe: Pipeline | None = None
        self._scales: dict[str, TagScale] = {}

    def load(self, name: str) -> Pipeline:
        """Return a model of the library, loaded if it is another than before.

        Raises CheckpointError for one that does not load; then there is none.
        """
        with self.lock:
            return self._load(name)

    def _load(self, name: str) -> Pipeline:
        if self.pipe is not None and self.name == name:
            return self.pipe
        self.pipe = self.name = None  # its memory is needed
        self._scales = {}
        given = self.library.settings
        pipe = Pipeline.from_pretrained(
            self.library.models[name], device=given.device, dtype=given.dtype, **away(given.ways)
        )
        faster = is_optimized(pipe.device.type, given.optimize) or any(given.ways.values())
        pipe.optimize(faster, **given.ways)
        self._load_embeddings(pipe)
        self.name, self.pipe = name, pipe
        return pipe

    def unload(self) -> None:
        """Free the model's memory; the next drawing loads one again."""
        with self.lock:
            self.pipe = self.name = None
            self._scales = {}

    def refresh_embeddings(self) -> None:
        """Load the words that the library has now."""
        with self.lock:
            if self.pipe is not None:
                self.pipe.unload_textual_inversion()
                self._load_embeddings(self.pipe)

    def _load_embeddings(self, pipe: Pipeline) -> None:
        for path in self.library.embeddings.values():
            try:
                pipe.load_textual_inversion(path)
            except LDMError as error:  # of another family, as a rule
                log.info("%s is left out: %s", path.name, error)

    def check_device(self) -> None:
        """Raise BusyError if the model's device computes no more, as after an error of CUDA."""
        if self.pipe is None:
            return
        try:
            float(torch.zeros(1, device=self.pipe.device) + 1)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise BusyError(f"the device {self.pipe.device} has failed: {reason:.200}") from error

    def prepare(self, drawing: Drawing) -> Pipeline:
        """Return the model of a drawing with its LoRAs and ControlNets, and no others.

        Raises CheckpointError for a file that does not fit, ArgumentError for few steps of a model
        that has no LoRA for them.
        """
        pipe = self.load(drawing.model).use_few_steps(drawing.few_steps)
        self._use_loras(pipe, dict(drawing.loras))
        self._use_controlnets(pipe, drawing.controlnets)
        return pipe

    def _use_loras(self, pipe: Pipeline, scales: dict[str, TagScale]) -> None:
        if scales == self._scales:
            return
        loaded = pipe.loras.loaded
        for name in scales:
            if name not in loaded:
                pipe.load_lora_weights(self.library.loras[name], name, 0.0)
        unused = [name for name in pipe.loras.loaded if name not in scales]
        if len(unused) > MOST_LORAS:
            kept = {n: lora for n, lora in pipe.loras.loaded.items() if n not in unused}
            pipe.loras.use(kept)
        if pipe.loras.loaded:
            pipe.set_adapters(list(scales), [scale._asdict() for scale in scales.values()])
        self._scales = scales

    def _use_controlnets(self, pipe: Pipeline, names: tuple[str, ...]) -> None:
        loaded = [name for name in pipe.controlnets if name != OWN_CONTROLNET]
        if loaded == list(names):
            return
        for name in loaded:  # their order is the pictures'
            pipe.unload_controlnet(name)
        for name in names:
            pipe.load_controlnet(self.library.controlnets[name], name)


def stream(pipe: Pipeline, drawing: Drawing, arguments: dict[str, object]) -> Iterator[Progress]:
    """Return the steps of a run; arguments: of ``LargeRequest``, see ``drawing.merged``."""
    if drawing.hires:
        from ldm.hires import hires_fix

        own = {name: value for name, value in arguments.items() if name != "outpaint"}
        return hires_fix(pipe, **own)  # type: ignore[arg-type]
    return pipe.stream(**plain_arguments(arguments))
