"""What a model was loaded from, for the files of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.images.generation_info import model_name


@dataclass
class Origin:
    """Names of files, without their folders; empty for a model that was put together by hand.

    Attributes:
        model, vae, text_encoders: as ``model_name`` names them.
        controlnets, t2i_adapters, ip_adapters: of each one that is loaded, by its name there.
        embeddings: of the textual inversions that are loaded.
        loading: arguments of ``Pipeline.from_pretrained`` that are not its defaults.
    """

    model: str | None = None
    vae: str | None = None
    text_encoders: tuple[str, ...] = ()
    controlnets: dict[str, str] = field(default_factory=dict)
    t2i_adapters: dict[str, str] = field(default_factory=dict)
    ip_adapters: dict[str, str] = field(default_factory=dict)
    embeddings: list[str] = field(default_factory=list)
    loading: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: str | Path | None,
        vae: str | Path | None,
        text_encoders: Sequence[str | Path],
        **loading: Any,
    ) -> Origin:
        """Describe a call of ``from_pretrained``; None and False are defaults."""
        return cls(
            model_name(model),
            None if vae is None else model_name(vae),
            tuple(map(model_name, text_encoders)),
            loading={name: value for name, value in loading.items() if value},
        )
