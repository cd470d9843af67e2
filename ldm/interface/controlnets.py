"""ControlNets of a pipeline: loaded beside the model, and removed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.source import check_paths
from ldm.config.arguments import checked
from ldm.config.checking import shown
from ldm.config.picture_readers import CONTROLNET, PictureReader
from ldm.control.control_lllite import ControlLLLite, check_lllite_ways
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.fast.optimize import Optimized
from ldm.images.generation_info import OWN_CONTROLNET, controlnet_name
from ldm.loading.model import Model
from ldm.loading.turns import changes_model


def choose_name(
    name: str | None, label: str, loaded: Mapping[str, object], kind: PictureReader
) -> str:
    """Return the name of a new network: as given, else its label, numbered if that is in use.

    Raises ArgumentError for a given name that is in use.
    """
    if name is None:
        names = chain([label], (f"{label}-{number}" for number in count(2)))
        return next(each for each in names if each not in loaded)
    if name in loaded:
        raise ArgumentError(
            f"there is a {kind.name} {name!r} already; give another name, or unload that"
        )
    return name


def check_loaded(name: str, loaded: Mapping[str, object], kind: PictureReader) -> None:
    """Raise ArgumentError for the name of a network that is not loaded."""
    if name not in loaded:
        known = ", ".join(loaded) or "none"
        raise ArgumentError(f"no {kind.name} named {shown(name)} is loaded; there are: {known}")


class ControlNets(Model):
    """A model with ControlNets."""

    @checked("name")
    @changes_model
    def load_controlnet(self, path: str | Path, name: str | None = None) -> str:
        """Load a ControlNet, which steers by ``control_image``; return its name.

        path: a diffusers folder, or a file of diffusers' or the authors' names, or a
        ControlNet-LLLite's, which is put onto the U-Net's layers. name: None is the
        file's, or the folder's if the file has diffusers' usual one. Several add up, in the order
        of loading. The model itself does not change.
        Raises CheckpointError for what does not fit the model, ArgumentError for a name in use.
        """
        check_paths({"controlnet": [path]})
        path = Path(path).expanduser()
        label = controlnet_name(path)
        name = choose_name(name, label, self.controlnets, CONTROLNET)
        # Only here: most pipelines never load one.
        from ldm.loading.control_lllite import is_control_lllite, load_control_lllite
        from ldm.loading.controlnet import check_latents, load_controlnet

        dtype, latents = next(self.unet.parameters()).dtype, self.vae.config
        if is_control_lllite(path):
            check_lllite_ways(self.optimized.compile, self.optimized.offload is not None)
            with self.plain():
                lllite = load_control_lllite(path, self.unet, latents.scale, dtype, self.device)
                lllite.attach(self.unet)
                self.controlnets[name] = lllite
        else:
            network = load_controlnet(
                path, self.unet.config, dtype, self.device, self._plain_weights
            )
            check_latents(path, network.config, latents.latent_channels, latents.scale)
            with self.plain():
                self.controlnets[name] = adapt_to_cpu(network)
        self.origin.controlnets[name] = label
        return name

    def load_own_controlnet(self) -> None:
        """Load the ControlNet in the model's folder, unless it is loaded or there is none."""
        if self.own_controlnet is None or OWN_CONTROLNET in self.controlnets:
            return
        with self.turns.changing():
            if OWN_CONTROLNET not in self.controlnets:
                self.load_controlnet(self.own_controlnet, OWN_CONTROLNET)
                self.origin.controlnets[OWN_CONTROLNET] = OWN_CONTROLNET

    def _plain_weights(self) -> dict[str, Tensor]:
        """Return the U-Net's weights as they are without LoRAs."""
        own = self.loras.own
        if not self.loras.loaded and own is None:
            return self.unet.state_dict()
        scales = {name: dict(lora.scales) for name, lora in self.loras.loaded.items()}
        self.loras.set_scales({})
        self.loras.use_own(None)
        try:
            return {
                name: value.clone()
                for name, value in self.unet.state_dict().items()
                if not name.startswith("up_blocks.")
            }
        finally:
            self.loras.use_own(own)
            self.loras.set_scales(scales)

    @checked()
    @changes_model
    def unload_controlnet(self, name: str) -> None:
        """Remove a ControlNet. Raises ArgumentError for a name that is not loaded."""
        check_loaded(name, self.controlnets, CONTROLNET)
        with self.plain():
            network = self.controlnets.pop(name)
            if isinstance(network, ControlLLLite):
                network.detach()
        del self.origin.controlnets[name]

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """Take what ``optimize`` installed off inside, and put it on again."""
        before, device = self.optimized, self.device
        if before.on:
            self._install(None, device, waiting=before.offload is not None)
        try:
            yield
        finally:
            self.optimize_as(before, device)

    def optimize_as(self, before: Optimized, device: torch.device | None = None) -> None:
        """Install what was installed before, if anything was; device: None is the present one."""
        if before.on:
            self._install(before.ways, device or self.device)
        self.optimized = replace(self.optimized, by_default=before.by_default)

    def fast_by_default(self) -> None:
        """Optimize where that is the default: on CUDA, for whom ``optimize`` was not called."""
        self.optimize_as(Optimized(on=self.device.type == "cuda", by_default=True))

    def _install(
        self, ways: dict[str, Any] | None, device: torch.device, waiting: bool = False
    ) -> None:
        """See ``Pipeline``."""
        raise NotImplementedError
