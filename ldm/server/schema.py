"""The body of our own interface: the fields of ``LargeRequest`` as JSON, and names beside them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ldm.adapters.lora_scale import TagScale
from ldm.server.drawing import Drawing
from ldm.server.state import Server
from ldm.server.uploads import read_upload

PICTURES = ("image", "mask_image", "depth_map", "reference_image")  # one each
LISTS = ("control_image", "adapter_image", "ip_adapter_image")


class LoraBody(BaseModel):
    """A LoRA and how strong it is."""

    name: str
    scale: float = 1.0


class DrawingBody(BaseModel):
    """What to draw: arguments of ``ldm.request.LargeRequest``, pictures as base64 or data URLs."""

    model_config = ConfigDict(extra="allow")

    prompt: str | list[str] = ""
    model: str | None = None
    loras: list[LoraBody] = Field(default_factory=list)
    controlnets: list[str] = Field(default_factory=list)
    hires: bool = False
    record: bool = False
    draft: bool = False

    def drawing(self, server: Server) -> Drawing:
        """Return it as a drawing. Raises as ``make_drawing`` does."""
        arguments: dict[str, Any] = {"prompt": self.prompt, **(self.model_extra or {})}
        most = server.limits.upload_pixels
        for name in (*PICTURES, *LISTS):
            value = arguments.get(name)
            if isinstance(value, str):
                arguments[name] = read_upload(value, name, most)
            elif isinstance(value, list):
                arguments[name] = [read_upload(each, name, most) for each in value]
        return server.make_drawing(
            {name: value for name, value in arguments.items() if value is not None},
            model=self.model,
            loras=[(lora.name, TagScale(lora.scale, lora.scale)) for lora in self.loras],
            controlnets=self.controlnets,
            hires=self.hires,
            record=self.record,
            draft=self.draft,
        )
