"""The pipeline: text, or text and an image, to pictures.

    pipe = Pipeline.from_pretrained()
    pipe("a red car", seed=1).images[0].save("car.png")

Source: Rombach et al. 2022, figure 3: the diffusion runs in the autoencoder's latent space; of
models without an autoencoder, in that of the pixels (Ho et al. 2020).
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm import latents, run
from ldm.adapters.lora import Lora
from ldm.checkpoints.source import find_model
from ldm.errors import ArgumentError
from ldm.fast.optimize import Optimized, check_optimize, optimize, undo
from ldm.loading.devices import choose_device, choose_dtype
from ldm.loading.folder import load_folder, save_folder
from ldm.loading.model import Model
from ldm.loading.single_file import load_file, load_vae, save_file
from ldm.request import Request, takes
from ldm.run import Output, Progress
from ldm.samplers import Choice, Pair
from ldm.techniques.attention_maps import AttentionMaps, watch_attention

__all__ = ["Output", "Pipeline", "Progress"]


class Pipeline(Model):
    """The parts of a model, composed: loaded and saved, adapted, optimized, and drawn with."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        variant: str | None = None,
        vae: str | Path | None = None,
        prediction_type: str | None = None,
        ema: bool = False,
        cache_dir: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        int8: bool = False,
    ) -> Pipeline:
        """Load a model: None is the built-in one, else a folder, a single file or a hub id.

        device: None takes CUDA where there is one, else the CPU.
        dtype: of the U-Net and the text encoder; None chooses by the device (see
        ``ldm.loading.devices``), "auto" keeps what the files hold. The VAE is float32 where float16
        is chosen.
        variant: "fp16" prefers files named so; the plain ones do where there are none.
        vae: the folder or file of another VAE to use.
        prediction_type: "epsilon", "v_prediction" or "sample"; None as the model says.
        ema: take the averaged copy of the U-Net's weights that full training checkpoints hold.
        int8: as of ``optimize``, which it does.
        Raises CheckpointError for a model that is missing, broken or not supported.
        """
        path = find_model(
            model,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            variant=variant,
        )
        device = choose_device(device)
        dtype = None if dtype == "auto" else choose_dtype(dtype, device)
        if path.is_file():
            parts = load_file(path, dtype, device, prediction_type, ema)
        elif ema:
            raise ArgumentError(f"{path} is a folder; only single files hold a copy for ema")
        else:
            parts = load_folder(path, dtype, device, variant, prediction_type)
        if vae is not None:
            old = parts["vae"]
            if old is None:
                raise ArgumentError(f"{path} draws pixels and has no VAE; leave vae out")
            to = next(old.parameters()).dtype
            parts["vae"] = load_vae(Path(vae).expanduser(), old.config, to, device)
        pipe = cls(**parts)
        return pipe.optimize(int8=True) if int8 else pipe

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that diffusers loads as a pipeline. None keeps the dtype.

        LoRAs that are on are merged into the weights; words that were loaded are left out.
        """
        save_folder(self.parts, Path(folder), dtype)

    def save_single_file(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a .safetensors file under the original names, as ``save_pretrained``.

        Raises CheckpointError for a model whose sizes are of no known family.
        """
        save_file(self.parts, Path(path), dtype)

    def load_textual_inversion(self, path: str | Path, token: str | None = None) -> str:
        """Learn a new word from a file; returns the word, to be used in prompts.

        It is ``token``, else what the file calls it, else the file's name.
        Raises CheckpointError for a file that does not fit, ArgumentError for a word in use.
        """
        self.need_text("a textual inversion is a word of it")
        return self.inversions.load(path, token).word

    def unload_textual_inversion(self) -> None:
        """Forget all words that were loaded."""
        self.inversions.unload()

    def load_lora_weights(
        self, path: str | Path, adapter_name: str | None = None, scale: float = 1.0
    ) -> Lora:
        """Put a LoRA file of kohya, peft or diffusers onto the model, beside those that are there.

        Returns what was read; its ``summary`` says how many keys found their place.
        Raises CheckpointError where none does, ArgumentError for a name that is in use.
        """
        self.need_text("LoRAs are for the Stable Diffusion family")
        return self.loras.load(path, adapter_name, scale)

    def set_adapters(
        self, adapter_names: str | Sequence[str], scales: float | Sequence[float] = 1.0
    ) -> None:
        """Use these of the loaded LoRAs, with these scales, and no others."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        each = [scales] * len(names) if isinstance(scales, int | float) else list(scales)
        if len(each) != len(names):
            raise ArgumentError(f"there are {len(each)} scales for {len(names)} adapter_names")
        self.loras.set_scales(dict(zip(names, each, strict=True)))

    def unload_lora_weights(self) -> None:
        """Take all LoRAs off; the weights are those from before, to the bit."""
        self.loras.unload()

    def optimize(
        self,
        on: bool = True,
        *,
        compile: bool = False,
        offload: bool = False,
        int8: bool = False,
    ) -> Pipeline:
        """Have the parts compute faster, or, off, as before; returns itself.

        The results are the same but for rounding; see ``ldm.fast``. On a CPU, weights are packed:
        they stay single in memory, and whatever reads or changes them (LoRA, ``save_pretrained``,
        ``state_dict``) sees them as they are. On CUDA, steps are replayed as recorded.
        compile: ``torch.compile`` the repeated blocks, which takes up to minutes at the first call,
        in place of the packing.
        offload: keep on the GPU only the part that computes; slower, in less memory, unrecorded.
        int8: on a CPU, compute most of the U-Net in 8-bit integers: another picture, near the
        exact one. What it gains depends on the processor: see ``ldm.fast.int8``.
        Raises ArgumentError for what does not work here or together.
        """
        if on:
            check_optimize(self.device, compile, offload, int8)
        undo(self.optimized, (self.unet, self.vae))
        self.optimized = Optimized()
        if on:
            encoders = [model.encoder for model in self.text_models]
            others = [*filter(None, [self.classifier]), *encoders]
            self.optimized = optimize(
                self.unet,
                self.vae,
                others,
                self.device,
                compile=compile,
                offload=offload,
                int8=int8,
            )
        return self

    @takes(Request)
    def __call__(self, request: Request) -> Output:
        """Draw pictures: ``stream`` run to its end."""
        (last,) = deque(run.stream(self, request), maxlen=1)
        assert last.output is not None
        return last.output

    @takes(Request)
    def stream(self, request: Request) -> Iterator[Progress]:
        """Draw pictures, yielding after every step; the last ``Progress`` holds the ``output``.

        Raises ArgumentError for an argument that cannot work: at once, not when the first step is
        asked for, and before anything is computed. ``ldm.request.Request`` says more of each.
        """
        return run.stream(self, request)

    def decode(self, x: Tensor) -> Tensor:
        """Decode scaled latents (B, C, h, w) to pixels (B, 3, 8h, 8w), float32 in [-1, 1].

        See ``ldm.latents.decode``. Raises CheckpointError for what is not finite in any number
        format: no black picture is ever returned instead.
        """
        return run.decode(self, x)

    def preview(self, x: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w), such as ``Progress.x0`` → RGB (B, 3, h, w) in [0, 1].

        Without a decode (see ``ldm.techniques.preview``). Where the model's folder has no map of
        its own, the first call fits one, which takes some seconds with a large VAE.
        """
        return latents.preview(self.vae, x, self.decode)

    @contextlib.contextmanager
    def explain(self) -> Iterator[AttentionMaps]:
        """Watch where each word looks while pictures are drawn.

        ``with pipe.explain() as attention:`` draw, then ``attention.words()``; see
        ``ldm.techniques.attention_maps``. What is drawn does not change; drawing takes a little
        longer.
        """
        self.need_text("there are no words to look for")
        before = self.listener
        with watch_attention(self.unet, self.text_models[0].tokenizer) as attention:
            self.listener = attention.set_rows
            try:
                yield attention
            finally:
                self.listener = before

    def choose_sampler(self, sampler: str | None, schedule: str | None = None) -> Choice:
        """Return the sampler and schedule of names as in ``stream``; None is the model's own."""
        return run.choose_sampler(self, sampler, schedule)

    def schedule(
        self,
        num_inference_steps: int | None = None,
        strength: float | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        *,
        masked: bool = False,
    ) -> tuple[list[Pair], int]:
        """Return the (from, to) levels of a run, and the index of the first that is run.

        That is 0 unless ``strength`` in [0, 1] says that it starts from an image; with ``masked``,
        from a part of it. Raises ArgumentError for numbers that do not work.
        """
        choice = self.choose_sampler(sampler, schedule)
        return run.plan_levels(self, choice, num_inference_steps, strength, masked)
