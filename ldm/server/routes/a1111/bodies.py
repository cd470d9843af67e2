"""The bodies of txt2img and img2img, with A1111's names and defaults; null is the default."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

SAME = ("", "None", "Use same checkpoint", "Use same sampler", "Use same scheduler")
# Fields that would change the picture and are not done here → values that do not.
REFUSED: dict[str, tuple[Any, ...]] = {
    "restore_faces": (False,),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    "s_churn": (0,),
    "s_noise": (1,),
    "s_min_uncond": (0,),
    "refiner_checkpoint": SAME,
    "initial_noise_multiplier": (1,),
    "firstpass_image": ("",),
    "infotext": ("",),
    "hr_checkpoint_name": SAME,
    "latent_mask": ("",),
    "mask_round": (True,),
}


class OpenBody(BaseModel):
    """A body of which the routes say themselves what they do not know."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, data: Any) -> Any:
        """Take null for the default, as A1111 does."""
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class DrawBody(OpenBody):
    """What txt2img and img2img have in common.

    width and height have no default: without them, pictures have the model's own size.
    """

    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] = Field(default_factory=list)
    seed: int = -1
    subseed: int = -1
    subseed_strength: FiniteFloat = 0.0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    sampler_name: str | None = None
    sampler_index: str = "Euler"
    scheduler: str | None = None
    batch_size: int = Field(default=1, ge=1)
    n_iter: int = Field(default=1, ge=1)
    steps: int = 50
    cfg_scale: FiniteFloat = 7.0
    width: int | None = None
    height: int | None = None
    restore_faces: bool = False
    tiling: bool = False
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: FiniteFloat | None = None
    s_min_uncond: FiniteFloat = 0.0
    s_churn: FiniteFloat = 0.0
    s_tmax: FiniteFloat | None = None
    s_tmin: FiniteFloat = 0.0
    s_noise: FiniteFloat = 1.0
    override_settings: dict[str, Any] = Field(default_factory=dict)
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str = ""
    refiner_switch_at: FiniteFloat | None = None
    disable_extra_networks: bool = False
    firstpass_image: str = ""
    comments: dict[str, Any] = Field(default_factory=dict)
    script_name: str = ""
    script_args: list[Any] = Field(default_factory=list)
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: dict[str, Any] = Field(default_factory=dict)
    force_task_id: str | None = None
    infotext: str = ""

    @property
    def count(self) -> int:
        """How many pictures to draw."""
        return self.batch_size * self.n_iter


class TextToImageBody(DrawBody):
    """Of txt2img."""

    enable_hr: bool = False
    denoising_strength: FiniteFloat = 0.75
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: FiniteFloat = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: str = ""
    hr_sampler_name: str = ""
    hr_scheduler: str = ""
    hr_prompt: str = ""
    hr_negative_prompt: str = ""


class ImageToImageBody(DrawBody):
    """Of img2img."""

    init_images: list[str] = Field(default_factory=list)
    resize_mode: int = Field(default=0, ge=0, le=3)
    denoising_strength: FiniteFloat = 0.75
    image_cfg_scale: FiniteFloat | None = None
    mask: str | None = None
    latent_mask: str = ""
    mask_blur: FiniteFloat | None = None
    mask_blur_x: FiniteFloat = 4
    mask_blur_y: FiniteFloat = 4
    mask_round: bool = True
    inpainting_fill: int = Field(default=0, ge=0, le=3)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0
    initial_noise_multiplier: FiniteFloat = 1.0
    include_init_images: bool = False
