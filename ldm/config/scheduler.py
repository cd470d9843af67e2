"""The configuration of the noise schedule, and the sampler that goes with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ldm.config.base import Config
from ldm.errors import CheckpointError

MOST_TIMESTEPS = 100_000
EDM_REFUSED = (
    "is of the EDM formulation, as Playground 2.5 and CosXL are, which is not supported; no other "
    "prediction_type draws it"
)


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """``scheduler_config.json``: the noise schedule, and the sampler that the author chose."""

    sampler_class: str = "DDPMScheduler"  # "_class_name" in the file
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str = "linear"  # or "scaled_linear" (SD) …: see ldm.scheduler.betas
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"  # or "sample" (x₀), "v_prediction", "mean" (ours)
    clip_sample: bool = True  # clamp x̂₀ to ±clip_sample_range
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True  # ᾱ before step 0: 1, else ᾱ₀
    steps_offset: int = 0
    timestep_spacing: str | None = None  # None: as the class does it
    rescale_betas_zero_snr: bool = False
    variance_type: str | None = "fixed_small"
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    final_sigmas_type: str = "zero"
    algorithm_type: str = "dpmsolver++"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    skip_prk_steps: bool = False
    thresholding: bool = False
    original_inference_steps: int = 50  # of LCM, TCD: timesteps of the distillation

    # Used only with thresholding, by a class that is not the file's own, or by flow models.
    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {
            "dynamic_thresholding_ratio",
            "sample_max_value",
            "flow_shift",
            "time_shift_type",
            "use_dynamic_shifting",
        }
    )
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "timestep_scaling": (10.0,),
        "lambda_min_clipped": (-math.inf,),
        "predict_x0": (True,),
        "disable_corrector": ([],),
    }

    def __post_init__(self) -> None:
        if not 2 <= self.num_train_timesteps <= MOST_TIMESTEPS:
            raise CheckpointError(
                f"num_train_timesteps is {self.num_train_timesteps}; expected 2 to {MOST_TIMESTEPS}"
            )
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise CheckpointError(
                f"trained_betas has {len(self.trained_betas)} values for num_train_timesteps "
                f"{self.num_train_timesteps}; expected one for each"
            )
        for name in ("beta_start", "beta_end"):
            if not 0 <= getattr(self, name) < 1:
                raise CheckpointError(f"{name} is {getattr(self, name)}; expected [0, 1)")

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "config") -> SchedulerConfig:
        """As ``Config.from_dict``, with ``_class_name`` kept as ``sampler_class``."""
        values = dict(values)
        if "_class_name" in values:
            values["sampler_class"] = values.pop("_class_name")
        if str(values.get("sampler_class")).startswith("EDM"):
            raise CheckpointError(f"{source} {EDM_REFUSED}")
        if values.get("sampler_class") == "PNDMScheduler":  # these have other defaults
            values.setdefault("set_alpha_to_one", False)
        if values.get("sampler_class") == "HeunDiscreteScheduler":
            values.setdefault("clip_sample", False)
        return super().from_dict(values, source)

    def to_dict(self) -> dict[str, Any]:
        values = {"_class_name": self.sampler_class, **super().to_dict()}
        del values["sampler_class"]
        names = {"quadratic": "scaled_linear", "exponential": "exp"}  # as diffusers calls them
        values["beta_schedule"] = names.get(self.beta_schedule, self.beta_schedule)
        if self.timestep_spacing is None:  # diffusers takes a missing key, but not null
            del values["timestep_spacing"]
        return values
