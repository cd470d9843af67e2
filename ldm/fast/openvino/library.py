"""The package OpenVINO, which is optional, and the device that it computes on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

from ldm.config.speed import OPENVINO, engine_name
from ldm.errors import ArgumentError

# What ``OPTIMIZATION_CAPABILITIES`` lists, and what ``INFERENCE_PRECISION_HINT`` takes.
FORMATS = {
    torch.float32: ("FP32", "f32"),
    torch.bfloat16: ("BF16", "bf16"),
    torch.float16: ("FP16", "f16"),
}


@cache
def load() -> Any:
    """Import OpenVINO. Raises ArgumentError where it is not installed, or broken.

    Its import would report itself to Google Analytics, and write a user's number to ``~/intel``.
    Without the package ``openvino_telemetry`` it does neither, so that is hidden meanwhile.
    """
    telemetry = "openvino_telemetry"
    hidden = telemetry not in sys.modules
    if hidden:
        sys.modules[telemetry] = None  # type: ignore[assignment]
    try:
        return import_module("openvino")
    except ImportError as error:
        raise ArgumentError(
            f"engine is {OPENVINO!r}, which cannot be imported ({error}); it is optional: "
            'pip install "ldm[openvino]"'
        ) from error
    finally:
        if hidden:
            del sys.modules[telemetry]


@cache
def core() -> Any:
    """Return OpenVINO's runtime, one for the process."""
    return load().Core()


@dataclass(frozen=True)
class Engine:
    """OpenVINO on one of its devices.

    Attributes:
        device: OpenVINO's name of it: "CPU", "GPU", "GPU.1", "NPU", …
    """

    device: str = "CPU"

    @classmethod
    def of(cls, name: str) -> Engine:
        """Read "openvino" or "openvino:DEVICE".

        Raises ArgumentError for another engine, for a missing package or an unknown device.
        """
        _, _, device = engine_name(name).partition(":")
        load()
        device = device or cls.device
        known = core().available_devices
        if device not in known and device.partition(".")[0] not in known:
            raise ArgumentError(
                f"engine is {name!r}, but OpenVINO sees no such device here; it sees "
                f"{', '.join(known)}"
            )
        return cls(device)

    @property
    def name(self) -> str:
        """The name by which ``of`` reads it."""
        return OPENVINO if self.device == Engine.device else f"{OPENVINO}:{self.device}"

    def check(self, dtype: torch.dtype) -> None:
        """Raise ArgumentError for a number format that the device does not compute in."""
        able = core().get_property(self.device, "OPTIMIZATION_CAPABILITIES")
        if dtype not in FORMATS or FORMATS[dtype][0] not in able:
            kinds = [str(kind)[6:] for kind, (word, _) in FORMATS.items() if word in able]
            raise ArgumentError(
                f"engine is {self.name!r}, whose device does not compute in {str(dtype)[6:]}; "
                f"load the model with dtype (--dtype) {' or '.join(kinds)}"
            )

    def settings(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return the settings of a compiled model that computes in a number format."""
        found = {"INFERENCE_PRECISION_HINT": FORMATS[dtype][1], "PERFORMANCE_HINT": "LATENCY"}
        if self.device == "CPU":  # others have no such setting
            return found | {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return found
