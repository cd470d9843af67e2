"""Methods that ``Pipeline`` has for users of diffusers: the rows "works" of ``diffusers_habits``.

Every other name of diffusers is an error that says what stands for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn

from ldm.adapters.lora_scale import Scale
from ldm.checkpoints.source import check_paths, file_of_lora
from ldm.config.arguments import checked
from ldm.config.checking import shown
from ldm.config.diffusers_habits import find, is_off, message
from ldm.errors import ArgumentError, UnknownAttributeError
from ldm.fast.optimize import Offloading, check_optimize
from ldm.interface.few_steps import FewStepsModel
from ldm.interface.ip_adapters import IPAdapters
from ldm.interface.t2i_adapters import T2IAdapters
from ldm.loading.devices import DTYPE_BY_NAME, choose_device, choose_dtype, vae_dtype
from ldm.loading.turns import changes_model
from ldm.samplers.names import find_sampler
from ldm.scheduler import DDPMScheduler

T = TypeVar("T", bound="DiffusersMethods")
PARTS = {"unet", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler"}


class DiffusersMethods(T2IAdapters, IPAdapters, FewStepsModel):
    """A model with diffusers' methods.

    Attributes:
        fused: names of the LoRAs that ``unload_lora_weights`` keeps.
        progress_bar_config: options of tqdm.
    """

    fused: frozenset[str] = frozenset()
    progress_bar_config: Mapping[str, Any] = MappingProxyType({})

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, as ``Pipeline(**pipe.components)`` takes them."""
        return {name: part for name, part in self.parts.items() if name in PARTS}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the U-Net."""
        return next(self.unet.parameters()).dtype

    @checked()
    @changes_model
    def to(
        self: T,
        *targets: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        silence_dtype_warnings: bool = False,
    ) -> T:
        """Move the model to a device, or to another dtype of the U-Net and the text encoders.

        ``pipe.to("cuda")``, ``pipe.to(torch.float32)``, ``pipe.to("cpu", torch.bfloat16)``. What
        ``optimize`` installed and LoRAs stay. Raises ArgumentError for what does not work here.
        """
        for target in targets:
            is_dtype = isinstance(target, torch.dtype) or target in DTYPE_BY_NAME
            if (dtype if is_dtype else device) is not None:
                raise ArgumentError(f"to() is given two {'dtypes' if is_dtype else 'devices'}")
            device, dtype = (device, target) if is_dtype else (target, dtype)  # type: ignore[assignment]
        place = self.device if device is None else choose_device(device)
        kind = choose_dtype(self.dtype if dtype is None else dtype, place)
        if dtype is not None:
            self.origin.loading["dtype"] = str(kind).removeprefix("torch.")
        if (place, kind) != (self.device, self.dtype):
            self._move(place, kind)
        return self

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        before = self.optimized
        if before.int8 and device.type != "cpu":
            raise ArgumentError("int8 is for CPUs; call optimize(int8=False) first")
        if before.engine is not None:
            if device.type != "cpu":
                raise ArgumentError(
                    f"the engine {before.engine_name} needs the model on the CPU, not on {device}; "
                    "call optimize(False) first"
                )
            before.engine.engine.check(dtype)
        if before.fp8 or before.int8_weights:
            check_optimize(device, fp8=before.fp8, int8_weights=before.int8_weights)
        scales = {name: dict(lora.scales) for name, lora in self.loras.loaded.items()}
        few_steps = self.loras.own
        self.loras.set_scales({})  # the weights are those of the files again
        self.loras.use_own(None)
        self._install(None, self.device, waiting=before.offload is not None)
        place = torch.device("cpu") if before.offload else device
        kind = vae_dtype(dtype)
        parts: list[tuple[nn.Module | None, torch.dtype | None]] = [
            (self.unet, dtype), (self.classifier, dtype), (self.vae, kind),
            (self.text_encoder, dtype), (self.text_encoder_2, dtype),
        ]  # fmt: skip
        parts += [(network, dtype) for network in self.controlnets.values()]
        parts += [(network, dtype) for network in self.t2i_adapters.values()]
        parts += [(network, dtype) for network in self.image_networks()]
        for part, own in parts:
            if part is not None:
                part.to(place, own)
        self.inversions.apply()
        if before.by_default:
            self.fast_by_default()
        elif before.on:
            offload = before.ways["offload"] if device.type != "cpu" else False
            self._install(before.ways | {"offload": offload}, device)
        self.loras.use_own(few_steps)
        self.loras.set_scales(scales)

    @checked()
    @changes_model
    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device = "cuda"
    ) -> None:
        """Keep only the part that computes on the GPU: ``optimize(offload=True)``."""
        self._offload(True, gpu_id, device)

    @checked()
    @changes_model
    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: str | torch.device = "cuda"
    ) -> None:
        """Keep only the blocks that compute on the GPU: ``optimize(offload="sequential")``."""
        self._offload("sequential", gpu_id, device)

    def _offload(self, offload: Offloading, gpu_id: int | None, device: str | torch.device) -> None:
        """Offload to the GPU that the model is on; of one on the CPU, to the one that is named."""
        place = self.device
        if place.type == "cpu":
            place = choose_device(f"cuda:{gpu_id}" if gpu_id is not None else device)
        self._install({"offload": offload}, place)

    def set_progress_bar_config(self, **options: Any) -> None:
        """Set tqdm's options of the bar, such as ``disable=True`` or ``desc="car"``."""
        import inspect

        from tqdm import tqdm

        known = set(inspect.signature(tqdm.__init__).parameters) - {"self", "iterable", "kwargs"}
        for name in options:
            if name not in known:
                raise ArgumentError(
                    f"tqdm has no option {name!r}; it has {', '.join(sorted(known))}"
                )
        self.progress_bar_config = options

    # LoRAs

    @checked()
    @changes_model
    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        """Keep LoRAs in the weights, where they are anyway; ``unload_lora_weights`` leaves them.

        lora_scale: factor of their scales. adapter_names: which; None is those in use.
        """
        active = self.get_active_adapters()
        names = active if adapter_names is None else list(adapter_names)
        self._need_loras(names)
        scales: dict[str, Scale] = {}
        for name in dict.fromkeys([*active, *names]):
            own = dict(self.loras.loaded[name].scales)
            own = own if name in active else dict.fromkeys(own, 1.0)
            factor = lora_scale if name in names else 1.0
            scales[name] = {part: scale * factor for part, scale in own.items()}
        self.loras.set_scales(scales)
        self.fused = self.fused | frozenset(names)

    @changes_model
    def unfuse_lora(self, *components: Any, **others: Any) -> None:
        """Let ``unload_lora_weights`` remove all LoRAs again."""
        self.fused = frozenset()

    def get_active_adapters(self) -> list[str]:
        """Return the names of the LoRAs in use."""
        return [name for name, lora in self.loras.loaded.items() if lora.active]

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the LoRAs on each part."""
        found: dict[str, list[str]] = {}
        for name, lora in self.loras.loaded.items():
            for part in lora.scales:
                if any(module[0] == part for module in lora.updates):
                    found.setdefault(part, []).append(name)
        return found

    @checked()
    @changes_model
    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove these LoRAs."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._need_loras(names)
        self.loras.use({n: lora for n, lora in self.loras.loaded.items() if n not in names})

    def _need_loras(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.loras.loaded:
                known = ", ".join(self.loras.loaded) or "none"
                raise ArgumentError(f"no LoRA named {shown(name)} is loaded; there are: {known}")

    # Names that are not here

    def __getattr__(self, name: str) -> Any:
        """Return what a harmless name of diffusers stands for; name the way here for others."""
        habit = find("pipe", name)
        if habit is None or habit.kind == "works":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if habit.kind == "off":
            return None
        if habit.kind == "ignored":
            return lambda *arguments, **options: None
        raise UnknownAttributeError(message(habit, name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse other parts: what was derived from the old ones would not follow."""
        old = self.__dict__.get(name)
        if name in PARTS and old is not None and value is not old:
            if name != "scheduler":
                raise ArgumentError(
                    f"{name} cannot be exchanged; Pipeline(**pipe.components | {{{name!r}: …}}) "
                    "makes another pipeline, and pipe.optimize(compile=True) compiles"
                )
            if not isinstance(value, DDPMScheduler):
                raise ArgumentError(scheduler_advice(value))
        habit = find("pipe", name)
        if habit is not None and habit.kind != "works" and name not in PARTS:
            if habit.kind == "error" or not is_off(value):
                raise UnknownAttributeError(message(habit, name))
            return
        super().__setattr__(name, value)


def scheduler_advice(value: Any) -> str:
    """Say which sampler and schedule stand for a scheduler of diffusers."""
    name = type(value).__name__
    config = getattr(value, "config", None)
    try:
        sampler, _ = find_sampler(name)
    except ArgumentError as error:
        return f"pipe.scheduler cannot be exchanged; give sampler= when you draw ({error})"
    if sampler == "dpmpp_2m" and isinstance(config, Mapping):
        is_sde = str(config.get("algorithm_type", "")).startswith("sde")
        sampler = "dpmpp_2m_sde" if is_sde else sampler
    schedules = [
        schedule
        for schedule in ("karras", "exponential", "beta")
        if isinstance(config, Mapping) and config.get(f"use_{schedule}_sigmas")
    ]
    more = f", schedule={schedules[0]!r}" if schedules else ""
    return (
        f"pipe.scheduler cannot be exchanged for a {name}; give it when you draw: "
        f"pipe(…, sampler={sampler!r}{more})"
    )


def lora_path(path: str | Path, weight_name: str | None) -> Path:
    """Return the file of a LoRA: a name in a folder, as diffusers' way names it, or a run's own."""
    if not isinstance(path, str | Path):
        raise ArgumentError(f"the LoRA is a {type(path).__name__}; give the path of its file")
    check_paths({"path": [path], "weight_name": [weight_name]})
    path = Path(path).expanduser()
    return path / weight_name if weight_name is not None else file_of_lora(path)
