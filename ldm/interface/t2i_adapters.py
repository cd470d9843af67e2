"""T2I-Adapters of a pipeline: loaded beside the model, and removed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ldm.checkpoints.source import check_paths
from ldm.config.arguments import checked
from ldm.config.picture_readers import T2I_ADAPTER
from ldm.images.generation_info import controlnet_name
from ldm.interface.controlnets import ControlNets, check_loaded, choose_name
from ldm.loading.turns import changes_model


class T2IAdapters(ControlNets):
    """A model with T2I-Adapters."""

    @checked("name")
    @changes_model
    def load_t2i_adapter(self, path: str | Path, name: str | None = None) -> str:
        """Load a T2I-Adapter, which steers by ``adapter_image``; return its name.

        path: a diffusers folder, or a file of diffusers' or the authors' names. name: None is the
        file's, or the folder's if the file has diffusers' usual one. Several add up, in the order
        of loading. The model itself does not change.
        Raises CheckpointError for what does not fit the model, ArgumentError for a name in use.
        """
        check_paths({"adapter": [path]})
        path = Path(path).expanduser()
        label = controlnet_name(path)
        name = choose_name(name, label, self.t2i_adapters, T2I_ADAPTER)
        # Only here: most pipelines never load one.
        from ldm.loading.t2i_adapter import load_t2i_adapter

        dtype = next(self.unet.parameters()).dtype
        network = load_t2i_adapter(
            path, self.unet.config, self.vae.config.scale, dtype, self.device
        )
        with self._brought_home():
            self.t2i_adapters[name] = network
        self.origin.t2i_adapters[name] = label
        return name

    @checked()
    @changes_model
    def unload_t2i_adapter(self, name: str) -> None:
        """Remove a T2I-Adapter. Raises ArgumentError for a name that is not loaded."""
        check_loaded(name, self.t2i_adapters, T2I_ADAPTER)
        with self._brought_home():
            del self.t2i_adapters[name]
        del self.origin.t2i_adapters[name]

    def _brought_home(self) -> AbstractContextManager[None]:
        """Take offloading off inside; nothing else that ``optimize`` installs is on an adapter."""
        return nullcontext() if self.optimized.offload is None else self.plain()
