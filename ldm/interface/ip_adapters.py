"""IP-Adapters of a pipeline: loaded beside the model with their image encoders, and removed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoints.source import check_paths
from ldm.config.arguments import checked
from ldm.config.checking import shown
from ldm.errors import ArgumentError
from ldm.images.generation_info import adapter_name
from ldm.images.inputs import Picture, flat
from ldm.interface.controlnets import ControlNets
from ldm.loading.model import own_ip_adapter
from ldm.loading.turns import changes_model

ENCODERS = "image_encoder"


class IPAdapters(ControlNets):
    """A model with IP-Adapters."""

    @checked("subfolder", "weight_name", "image_encoder_folder", "name")
    def load_ip_adapter(
        self,
        path: str | Path | Sequence[str | Path],
        subfolder: str | Sequence[str | None] | None = None,
        weight_name: str | Sequence[str | None] | None = None,
        image_encoder_folder: str | None = ENCODERS,
        *,
        image_encoder: str | Path | None = None,
        name: str | None = None,
    ) -> str | list[str]:
        """Load an IP-Adapter, which reads ``ip_adapter_image``; return its name.

        path: its file; or, as in diffusers, a folder, with ``subfolder`` and ``weight_name`` in it;
            lists load several.
        image_encoder: the folder or file of CLIP's vision encoder. None finds it beside the file
            as in h94/IP-Adapter, or in the model's folder, by the name ``image_encoder_folder``;
            that one's None loads none, for ``ip_adapter_image_embeds`` alone.
        name: None is the file's. Several add up, in the order of loading. The model itself does
            not change.
        Raises CheckpointError for what does not fit the model or each other, ArgumentError for a
        name in use.
        """
        lists = [v for v in (path, subfolder, weight_name) if isinstance(v, list | tuple)]
        if lists:
            if name is not None:
                raise ArgumentError("name is one for several IP-Adapters; load them one by one")
            several = max(map(len, lists))
            rows = [
                v if isinstance(v, list | tuple) else [v] for v in (path, subfolder, weight_name)
            ]
            if any(len(row) not in (1, several) for row in rows):
                raise ArgumentError(
                    "path, subfolder and weight_name have different lengths; give one, or lists "
                    "of one length"
                )
            each = zip(*(list(r) * (several if len(r) == 1 else 1) for r in rows), strict=True)
            return [
                self._load_one(one, inner, file, image_encoder_folder, image_encoder, None)
                for one, inner, file in each
            ]
        return self._load_one(
            path, subfolder, weight_name, image_encoder_folder, image_encoder, name
        )

    @changes_model
    def _load_one(
        self,
        path: Any,
        subfolder: Any,
        weight_name: Any,
        folder: str | None,
        image_encoder: str | Path | None,
        name: str | None,
    ) -> str:
        check_paths({"ip_adapter": [path], "image_encoder": [image_encoder]})
        if path is None:
            raise ArgumentError("path is None; give the file of an IP-Adapter, or a folder")
        inside = Path(path, *(str(part) for part in (subfolder, weight_name) if part is not None))
        check_paths({"subfolder and weight_name": [inside]})
        # Only here: most pipelines never load one.
        from ldm.loading.ip_adapter import find_file

        file = find_file(Path(path).expanduser(), subfolder, weight_name)
        used = {key for key, adapter in self.ip_adapters.items() if not adapter.own}
        label = adapter_name(file)
        if name is None:
            names = chain([label], (f"{label}-{number}" for number in count(2)))
            name = next(each for each in names if each not in used)
        elif name in used:
            raise ArgumentError(
                f"there is an IP-Adapter {name!r} already; give another name, or unload that"
            )
        adapter = self.make_ip_adapter(file, folder, image_encoder)
        with self.plain():
            self._forget_own()
            self.ip_adapters[name] = adapter
        self.origin.ip_adapters[name] = label
        return name

    def _forget_own(self) -> None:
        """Remove the model's own IP-Adapter, which others take the place of."""
        for key in [key for key, adapter in self.ip_adapters.items() if adapter.own]:
            del self.ip_adapters[key]

    @checked()
    @changes_model
    def unload_ip_adapter(self, name: str | None = None) -> None:
        """Remove an IP-Adapter; None removes all. Raises ArgumentError for an unknown name."""
        if name is not None and name not in self.ip_adapters:
            known = ", ".join(self.ip_adapters) or "none"
            raise ArgumentError(f"no IP-Adapter named {shown(name)} is loaded; there are: {known}")
        with self.plain():
            for each in [name] if name is not None else list(self.ip_adapters):
                del self.ip_adapters[each]
                self.origin.ip_adapters.pop(each, None)

    @changes_model
    def set_ip_adapter_scale(self, scale: Any) -> None:
        """Set how much each IP-Adapter counts, as in diffusers: one for all, or a list.

        Each is a number, a list with one for each of its pictures, or a dict by block such as
        ``{"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}``, where what is not
        named is 0. ``ip_adapter_scale`` of a call goes before it.
        Raises ArgumentError for another number of scales, and for what the U-Net has not.
        """
        # Only here: most pipelines never load one.
        from ldm.control.ip_adapter_scale import check_scale

        if not self.ip_adapters:
            raise ArgumentError("no IP-Adapter is loaded: load_ip_adapter(path)")
        scales = list(scale) if isinstance(scale, list | tuple) else [scale] * len(self.ip_adapters)
        if len(scales) != len(self.ip_adapters):
            raise ArgumentError(
                f"there are {len(scales)} scales for {len(self.ip_adapters)} IP-Adapters; give "
                "one, or a list with one for each"
            )
        for one in scales:
            check_scale(self.unet, one)
        for adapter, one in zip(self.ip_adapters.values(), scales, strict=True):
            adapter.scale = one

    @checked("name")
    def encode_ip_adapter_image(
        self, image: Picture | Sequence[Picture], name: str | None = None
    ) -> Tensor:
        """Encode pictures once, for ``ip_adapter_image_embeds``: a tensor of one IP-Adapter.

        (2, n, P), or (2, n, N, P) of all patches: an empty picture's, then those of n pictures.
        name: of the adapter; None if there is one. ``ldm.control.image_sources`` writes files.
        Raises ArgumentError for an unknown name, ImageError for what cannot be read.
        """
        from ldm.images import load_image

        if not self.ip_adapters:
            own_ip_adapter(self)
        if name is None and len(self.ip_adapters) == 1:
            (name,) = self.ip_adapters
        if name not in self.ip_adapters:
            known = ", ".join(self.ip_adapters) or "none: load_ip_adapter(path)"
            raise ArgumentError(
                f"name is {shown(name)}; the IP-Adapters that are loaded are {known}"
            )
        parts: Sequence[Any] = image if isinstance(image, list | tuple) else [image]
        pictures = [load_image(one) for part in parts for one in flat(part, "image")]
        if not pictures:
            raise ArgumentError("image is an empty list; give a picture")
        with torch.no_grad(), self.drawing():
            return self.ip_adapters[name].encode(pictures).cpu()

    def image_networks(self) -> list[nn.Module]:
        """Return the IP-Adapters and their encoders, each once."""
        found: list[nn.Module] = []
        for adapter in self.ip_adapters.values():
            for part in (adapter.network, adapter.encoder):
                if part is not None and not any(part is other for other in found):
                    found.append(part)
        return found
