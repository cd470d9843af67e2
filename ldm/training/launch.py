"""The accelerator of a run: processes, precision, sharding and trackers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from ldm.config.settings import nearest
from ldm.errors import ArgumentError
from ldm.training.config import TrainConfig, as_json

PROCESS_TIMEOUT = timedelta(hours=3)  # of processes that wait for the main one to draw and save


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Build the accelerator of a run. Raises ArgumentError for a precision or tracker not there."""
    check_trackers(config.trackers)
    # A second run in one process (a notebook, a test) would else have the first one's precision.
    AcceleratorState._reset_state()
    run = Path(config.output)
    try:
        accelerator = Accelerator(
            # Or processes on a machine without a GPU would each believe to be the only one.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.mixed_precision,
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(str(run), logging_dir=str(run / "trackers")),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
    except ValueError as error:
        raise ArgumentError(f"accelerate refuses these settings: {error}") from error
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ArgumentError(
            "mixed_precision is 'fp16', which CPUs compute very slowly; use 'bf16' or 'no' there"
        )
    return accelerator


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise ArgumentError for a tracker that accelerate does not know or that is not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ArgumentError(
                f"trackers holds {name!r}; {nearest(name, list(LOGGER_TYPE_TO_CLASS))}"
            )
        if name not in map(str, get_available_trackers()):
            raise ArgumentError(f"trackers holds {name!r}, which is not installed: pip install it")


def start_trackers(accelerator: Accelerator, config: TrainConfig) -> None:
    """Start the trackers with the run's settings; TensorBoard writes to ``run/trackers``."""
    if config.trackers:
        accelerator.init_trackers("ldm", {key: str(v) for key, v in as_json(config).items()})
