"""The text encoder's states of all captions, computed once and kept in the run folder."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ldm.clip import CLIPTextEncoder
from ldm.config import write_json
from ldm.errors import DataError
from ldm.training.leftovers import remove
from ldm.training.recipes.cached_latents import check_array, fingerprint, kept

BATCH = 64  # captions encoded at once


class CachedContexts:
    """What the U-Net attends to, float16 in one file: 2·77·D bytes a caption.

    Args:
        folder: where the file is kept, which belongs to one encoder and one list of captions.
        tokens: of the captions, int (N, 77).
    """

    def __init__(self, folder: Path, text_encoder: CLIPTextEncoder, tokens: Tensor) -> None:
        self.folder, self.text_encoder, self.tokens = folder, text_encoder, tokens

    def prepare(self, accelerator: Accelerator) -> None:
        """Encode every caption, each process its share, unless the file is there."""
        done, file = self.folder / "contexts.json", self.folder / "contexts.npy"
        belongs = {
            "weights": fingerprint(self.text_encoder),
            "captions": list(self.tokens.shape),
            "tokens": zlib.crc32(self.tokens.numpy().tobytes()),
        }
        shape = (*self.tokens.shape, self.text_encoder.config.hidden_size)
        if kept(done) != belongs or not is_whole(file, shape):
            if accelerator.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                remove(done)
                remove(file)
                np.lib.format.open_memmap(file, "w+", np.float16, shape).flush()
            accelerator.wait_for_everyone()
            rows = torch.arange(len(self.tokens)).tensor_split(accelerator.num_processes)
            self._encode(file, rows[accelerator.process_index], accelerator)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_json(done, belongs)
            accelerator.wait_for_everyone()
        self.states = np.load(file, mmap_mode="r")

    @torch.no_grad()
    def _encode(self, file: Path, share: Tensor, accelerator: Accelerator) -> None:
        states = np.lib.format.open_memmap(file, "r+")
        encoder = self.text_encoder.to(accelerator.device)
        with accelerator.autocast():
            for part in share.split(BATCH):
                ids = self.tokens[part].long().to(accelerator.device)
                states[part.numpy()] = encoder(ids).context.half().cpu().numpy()
        states.flush()

    def of(self, captions: Tensor) -> Tensor:
        """Return the states of captions: indices (B,) → float32 (B, 77, D)."""
        return torch.from_numpy(self.states[captions.numpy()]).float()


def is_whole(file: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file has the states of as many captions; damaged ones are computed again."""
    try:
        check_array(file, np.dtype(np.float16), shape)
    except DataError:
        return False
    return True
