"""The text encoders' states of all captions, computed once and kept in the run folder."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.config import write_json
from ldm.errors import DataError
from ldm.training.recipes.array_files import (
    Layout,
    check_array,
    create_arrays,
    fingerprint,
    kept,
    open_array,
)
from ldm.training.recipes.counted import counted

BATCH = 64  # captions encoded at once

# Token ids (B, encoders, 77) → the states by the names that ``UNet.forward`` has for them.
Encode = Callable[[Tensor], dict[str, Tensor]]


class CachedContexts:
    """What the U-Net reads of each caption, float16, in one file for each kind of states.

    2·77·D bytes a caption, and with SDXL's two encoders 2·P more for the pooled state. Batches read
    what they need from the mapped files.

    Args:
        folder: where the files are kept, which belong to the encoders and one list of captions.
        encoders: the modules, by which the files are known.
        encode: encodes ids, with these modules.
        texts: the captions, N of them.
        ids_of: converts texts to ids, int (B, encoders, 77).
        clip_skip: layers of the encoders that ``encode`` leaves out.
    """

    def __init__(
        self,
        folder: Path,
        encoders: Sequence[torch.nn.Module],
        encode: Encode,
        texts: Sequence[str],
        ids_of: Callable[[Sequence[str]], Tensor],
        clip_skip: int = 0,
    ) -> None:
        self.folder, self.encoders, self.encode = folder, encoders, encode
        self.texts, self.ids_of, self.clip_skip = texts, ids_of, clip_skip

    def prepare(self, accelerator: Accelerator) -> None:
        """Encode every caption, each process its share, unless the files are there.

        Raises TrainingError for a full disk.
        """
        done = self.folder / "contexts.json"
        for encoder in self.encoders:
            encoder.to(accelerator.device)
        layouts = self._layouts(accelerator)
        belongs = self._belongs()
        if kept(done) != belongs or not self._is_whole(layouts):
            if accelerator.is_main_process:
                done.unlink(missing_ok=True)
                files = {f"{name}.npy": layout for name, layout in layouts.items()}
                create_arrays(self.folder, files, f"the states of {len(self.texts)} captions")
            accelerator.wait_for_everyone()
            rows = torch.arange(len(self.texts)).tensor_split(accelerator.num_processes)
            self._encode(list(layouts), rows[accelerator.process_index], accelerator)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_json(done, belongs)
            accelerator.wait_for_everyone()
        self.states = {name: np.load(self._file(name), mmap_mode="r") for name in layouts}

    @torch.no_grad()
    def _states(self, texts: Sequence[str], accelerator: Accelerator) -> dict[str, np.ndarray]:
        with accelerator.autocast():
            found = self.encode(self.ids_of(texts).to(accelerator.device))
        return {name: state.half().cpu().numpy() for name, state in found.items()}

    def _layouts(self, accelerator: Accelerator) -> dict[str, Layout]:
        """Return what each file holds, as one caption shows."""
        one = self._states(self.texts[:1], accelerator)
        count = len(self.texts)
        return {name: Layout(np.float16, (count, *one[name].shape[1:])) for name in one}

    def _belongs(self) -> dict[str, Any]:
        tokens = 0
        for part in torch.arange(len(self.texts)).split(BATCH):
            ids = self.ids_of([self.texts[i] for i in part.tolist()])
            tokens = zlib.crc32(ids.int().numpy().tobytes(), tokens)
        return {
            "weights": [fingerprint(encoder) for encoder in self.encoders],
            "clip_skip": self.clip_skip,
            "captions": len(self.texts),
            "tokens": tokens,
        }

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _is_whole(self, layouts: dict[str, Layout]) -> bool:
        """Whether the files have the states of as many captions; damaged ones are made again."""
        try:
            for name, layout in layouts.items():
                check_array(self._file(name), layout)
        except DataError:
            return False
        return True

    def _encode(self, names: Sequence[str], share: Tensor, accelerator: Accelerator) -> None:
        files = {name: open_array(self._file(name)) for name in names}
        for part in counted(share.split(BATCH), "encoding captions"):
            found = self._states([self.texts[i] for i in part.tolist()], accelerator)
            for name, file in files.items():
                file[part.numpy()] = found[name]
        for file in files.values():
            file.flush()

    def of(self, captions: Tensor) -> dict[str, Tensor]:
        """Return the states of captions: indices (B,) → float32 (B, 77, D), and pooled (B, P)."""
        return {
            name: torch.from_numpy(states[captions.numpy()]).float()
            for name, states in self.states.items()
        }
