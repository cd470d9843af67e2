"""The pipeline: from text, or text and an image, to pictures.

    pipe = Pipeline.from_pretrained()
    pipe("a red car", seed=1).images[0].save("car.png")

Source: Rombach et al. 2022, figure 3: the diffusion runs in the autoencoder's latent space; of
models without an autoencoder, in that of the pixels (Ho et al. 2020).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ldm import latents, preparation, run
from ldm.adapters.lora import Lora
from ldm.adapters.lora_scale import Scale
from ldm.checkpoints.source import check_paths, find_model
from ldm.config.arguments import checked, takes
from ldm.config.diffusers_habits import accepts_habits
from ldm.config.speed import away
from ldm.control.control_lllite import ControlLLLite, check_lllite_ways
from ldm.errors import ArgumentError, CheckpointError
from ldm.fast.optimize import Offloading, Optimized, check_optimize, optimize, undo
from ldm.fast.waiting import sleep_beside_others
from ldm.interface.diffusers_calls import as_tuple, call_back, check_inputs
from ldm.interface.diffusers_methods import DiffusersMethods, lora_path
from ldm.interface.progress_bar import show_progress
from ldm.interface.summary import summarize
from ldm.latents import Pixels
from ldm.loading.compatibility import check_parts_finite
from ldm.loading.devices import choose_device, choose_dtype
from ldm.loading.folder import load_folder, save_folder
from ldm.loading.needed import check_weights_fit, memory_needed
from ldm.loading.origin import Origin
from ldm.loading.single_file import load_file, replace_parts
from ldm.loading.turns import changes_model, reads_model
from ldm.loading.vae import load_preview_vae
from ldm.memory.estimate import MemoryNeeded
from ldm.output import Output
from ldm.request import CallRequest, Request
from ldm.run import Progress
from ldm.samplers import Choice, Pair
from ldm.techniques.attention_maps import AttentionMaps, watch_attention

__all__ = ["Output", "Pipeline", "Progress"]


class Pipeline(DiffusersMethods):
    """The parts of a model, composed: loaded and saved, adapted, optimized, and drawn with."""

    @classmethod
    @accepts_habits("from_pretrained")
    @checked(
        "device",
        "dtype",
        "variant",
        "prediction_type",
        "ema",
        "cache_dir",
        "revision",
        "token",
        "local_files_only",
        "int8",
        "fp8",
        "int8_weights",
        "offload",
        "few_steps",
    )
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        variant: str | None = None,
        vae: str | Path | None = None,
        preview_vae: str | Path | None = None,
        text_encoder: str | Path | Sequence[str | Path] | None = None,
        prediction_type: str | None = None,
        ema: bool = False,
        cache_dir: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        int8: bool = False,
        fp8: bool = False,
        int8_weights: bool = False,
        offload: Offloading = False,
        few_steps: bool = False,
        controlnet: str | Path | Sequence[str | Path] | None = None,
        adapter: str | Path | Sequence[str | Path] | None = None,
        check_finite: bool = False,
    ) -> Pipeline:
        """Load a model: None is the built-in one, else a folder, a single file or a hub id.

        device: None takes CUDA if it is available, else the CPU.
        dtype: of the U-Net and the text encoder; None chooses by the device (see
        ``ldm.loading.devices``), "auto" keeps the dtypes of the files, except that float8 becomes
        float16 and a GGUF's blocks float32. With float16, the VAE is float32.
        variant: "fp16" prefers files named so to plain ones.
        vae: the folder or file of another VAE to use, also for a file that lacks one; TAESD, too.
        preview_vae: the folder or file of a TAESD that ``preview`` decodes with.
        text_encoder: likewise of text encoders; each is used where its width fits.
        prediction_type: "epsilon", "v_prediction" or "sample"; None as in the model's config.
        ema: take the averaged copy of the U-Net's weights that full training checkpoints hold.
        int8, fp8, int8_weights, offload: as in ``optimize``, which is called then. What the last
            two keep off the GPU is loaded into the CPU's memory.
        few_steps: call ``use_few_steps``: draw in few steps, by the LoRA in the model's folder.
        controlnet: folders or files of ControlNets, as of ``load_controlnet``.
        adapter: likewise of T2I-Adapters, as of ``load_t2i_adapter``.
        check_finite: look for NaN and infinities in all weights, which reads the whole files and
            makes loading a quarter slower; else they are found when they reach a picture.
        Habits of diffusers are accepted, such as ``torch_dtype``: ``ldm.config.diffusers_habits``.
        Raises CheckpointError for a model that is missing, broken or not supported.
        """
        texts = listed(text_encoder)
        controls, adapters = listed(controlnet), listed(adapter)
        check_paths({"controlnet": controls, "adapter": adapters})
        check_paths({"model": [model], "vae": [vae], "text_encoder": texts})
        path = find_model(
            model,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            variant=variant,
        )
        device = choose_device(device)
        sleep_beside_others(device)
        origin = Origin.of(
            model,
            vae,
            texts,
            dtype=None if dtype is None else str(dtype).removeprefix("torch."),
            variant=variant,
            prediction_type=prediction_type,
            ema=ema,
        )
        dtype = None if dtype == "auto" else choose_dtype(dtype, device)
        other = None if vae is None else Path(vae).expanduser()
        encoders = [Path(text).expanduser() for text in texts]
        ways: dict[str, Any] = {"offload": offload, "int8": int8, "fp8": fp8}
        ways["int8_weights"] = int8_weights
        check_optimize(device, **ways)
        home = torch.device("cpu") if away(ways) else device
        check_weights_fit(path, dtype, home, variant)
        if path.is_file():
            parts = load_file(
                path, dtype, home, prediction_type, ema, vae=other, text_encoders=encoders
            )
        elif ema:
            raise ArgumentError(f"{path} is a folder; only single files hold a copy for ema")
        else:
            parts = load_folder(path, dtype, home, variant, prediction_type)
            replace_parts(parts, path, other, encoders, home)
        if check_finite:
            check_parts_finite(parts)
        pipe = cls(**parts)
        pipe.origin = origin
        pipe.folder = path if path.is_dir() else None
        if dtype is None:  # "auto"
            origin.loading["dtype"] = str(pipe.dtype).removeprefix("torch.")
        for each in controls:
            pipe.load_controlnet(each)
        for each in adapters:
            pipe.load_t2i_adapter(each)
        if few_steps:
            pipe.use_few_steps()
        if any(ways.values()):
            pipe._install(ways, device)
        else:
            pipe.fast_by_default()
        if preview_vae is not None:  # it stays on the device
            pipe.load_preview_vae(preview_vae)
        return pipe

    from_single_file = from_pretrained

    @checked()
    @reads_model
    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that diffusers loads as a pipeline. None keeps the dtype.

        Active LoRAs are merged into the weights; words that were loaded are left out. In float8,
        some weights stay finer: see ``ldm.checkpoints.number_formats``. Raises CheckpointError
        for a folder that cannot be written.
        """
        check_paths({"folder": [folder]})
        try:
            save_folder(self.parts, Path(folder), dtype)
        except OSError as error:
            raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error

    @checked()
    @reads_model
    def save_single_file(
        self, path: str | Path, dtype: torch.dtype | Literal["q8_0"] | None = None
    ) -> None:
        """Write a single file under the original names, as ``save_pretrained``.

        path: ends in .safetensors, or in .gguf: that is for stable-diffusion.cpp and for
        ComfyUI-GGUF, in "q8_0" unless dtype is a wider one, and needs the extra ``ldm[gguf]``.
        Raises CheckpointError for a model whose sizes are those of no known family, ArgumentError
        for a dtype that the file cannot have.
        """
        from ldm.loading.write_file import save_file

        check_paths({"path": [path]})
        save_file(self.parts, Path(path), dtype)

    @checked()
    @changes_model
    def load_preview_vae(self, path: str | Path) -> None:
        """Load a TAESD that ``preview`` decodes with, from a folder or a file.

        Raises CheckpointError for a file of another kind or another model, ArgumentError for a
        model of pixels.
        """
        if isinstance(self.vae, Pixels):
            raise ArgumentError("this model draws pixels, which are their own preview")
        like = next(self.vae.parameters())
        channels = self.vae.config.latent_channels
        check_paths({"path": [path]})
        path = Path(path).expanduser()
        self.preview_vae = load_preview_vae(path, channels, like.dtype, self.device)

    @checked()
    @changes_model
    def load_textual_inversion(
        self, path: str | Path, token: str | Sequence[str] | None = None
    ) -> str:
        """Load a new word from a file, or a run's folder; return the word, to be used in prompts.

        The word is ``token``, else what the file calls it, else the file's name. Of a file of
        several words, all are loaded, ``token`` is a list, and they are returned with ", " between.
        Raises CheckpointError for a file that does not fit, ArgumentError for a word in use.
        """
        self.need_text("a textual inversion is a word of it")
        check_paths({"path": [path]})
        loaded = self.inversions.load(path, token)
        self.origin.embeddings.append(Path(path).stem)
        return ", ".join(inversion.word for inversion in loaded)

    @changes_model
    def unload_textual_inversion(self) -> None:
        """Forget all words that were loaded."""
        self.inversions.unload()
        self.origin.embeddings.clear()

    @checked("adapter_name", "scale", "partial", "weight_name")
    @changes_model
    def load_lora_weights(
        self,
        path: str | Path,
        adapter_name: str | None = None,
        scale: Scale = 1.0,
        partial: bool = False,
        *,
        weight_name: str | None = None,
    ) -> Lora:
        """Add a LoRA file, of any kind and of any tool, to the model and its other LoRAs.

        Returns what was read; its ``summary`` says how many keys fit. Words that it holds can be
        used in prompts while it is in use.

        Args:
            scale: of all parts, or of each: ``{"unet": 0.8, "text_encoder": 0.5}``.
            partial: whether to use a file of which only some keys fit the U-Net.
            weight_name: as in diffusers, the file's name if ``path`` is a folder.

        Raises CheckpointError for a file that does not fit, ArgumentError for a name that is in
        use.
        """
        self.need_text("LoRAs are for the Stable Diffusion family")
        return self.loras.load(lora_path(path, weight_name), adapter_name, scale, partial)

    @checked()
    @changes_model
    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        scales: Scale | Sequence[Scale] = 1.0,
        *,
        adapter_weights: Scale | Sequence[Scale] | None = None,
    ) -> None:
        """Use these of the loaded LoRAs, with these scales, and no others.

        adapter_weights: diffusers' name of the scales.
        """
        scales = scales if adapter_weights is None else adapter_weights
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if not isinstance(scales, Sequence):
            scales = [scales] * len(names)
        each = list(scales)
        if len(each) != len(names):
            raise ArgumentError(f"there are {len(each)} scales for {len(names)} adapter_names")
        self.loras.set_scales(dict(zip(names, each, strict=True)))

    @changes_model
    def unload_lora_weights(self) -> None:
        """Remove all LoRAs; the weights are bit-identical to those from before.

        As in diffusers, those that ``fuse_lora`` was called for stay.
        """
        self.loras.use({n: lora for n, lora in self.loras.loaded.items() if n in self.fused})

    @checked()
    @changes_model
    def optimize(
        self,
        on: bool = True,
        *,
        compile: bool = False,
        offload: Offloading = False,
        int8: bool = False,
        fp8: bool = False,
        int8_weights: bool = False,
        engine: str | None = None,
    ) -> Pipeline:
        """Make the parts compute faster or, with ``on`` False, as before; return the pipeline.

        The results are the same except for rounding; see ``ldm.fast``. On a CPU, weights are
        packed: memory holds them once, and whatever reads or changes them (LoRA,
        ``save_pretrained``, ``state_dict``) sees the plain weights. CUDA is optimized by default:
        each kind of step is recorded when it comes a second time, then replayed.
        compile: ``torch.compile`` the repeated blocks instead of packing, which takes up to minutes
        at the first call.
        offload: keep only the part that computes on the GPU: less memory, slower, no recording.
            "sequential" keeps only the block that computes, and the next one: the least memory;
            see ``ldm.fast.sequential``.
        int8: on a CPU, compute most of the U-Net in 8-bit integers: a picture near the exact one.
        The gain depends on the processor: see ``ldm.fast.int8``.
        fp8: on a GPU of compute capability 8.9 or more, compute the U-Net's linear layers in 8-bit
        floating-point numbers: a picture near the exact one. See ``ldm.fast.fp8``.
        int8_weights: as ``offload=True``, with weights in 8-bit integers on the GPU: about half of
        the memory, and a picture near the exact one. See ``ldm.fast.int8_weights``.
        engine: "openvino", or "openvino:GPU" for one of its devices: OpenVINO computes the U-Net,
        the VAE and the text encoders, and PyTorch, with a warning, what it cannot. Networks are
        converted at their first use and kept on disk: see ``ldm.fast.openvino``.
        Raises ArgumentError for options that do not work here or together.
        """
        ways: dict[str, Any] = {"compile": compile, "offload": offload, "int8": int8, "fp8": fp8}
        ways |= {"int8_weights": int8_weights, "engine": engine}
        self._install(ways if on else None, self.device)
        return self

    def _install(
        self, ways: dict[str, Any] | None, device: torch.device, waiting: bool = False
    ) -> None:
        """Replace what is installed by these arguments of ``optimize`` for a device; None: nothing.

        waiting: whether parts that are off the GPU stay so, for what is installed next.
        """
        encoders = [model.encoder for model in self.text_models]
        if ways is not None:
            check_optimize(device, (self.unet, self.vae, *encoders), **ways)
            if any(isinstance(one, ControlLLLite) for one in self.controlnets.values()):
                check_lllite_ways(bool(ways.get("compile")), bool(away(ways)))
            waiting = bool(away(ways))
        networks = (self.unet, self.vae, *encoders, *self.controlnets.values())
        undo(self.optimized, networks, torch.device("cpu") if waiting else device)
        self.optimized = Optimized()
        if ways is not None:
            others = [*self.t2i_adapters.values(), *self.image_networks()]
            self.optimized = optimize(
                self.unet,
                self.vae,
                encoders,
                others,
                self.controlnets,
                device,
                classifier=self.classifier,
                **ways,
            )

    @takes(CallRequest)
    def __call__(self, request: CallRequest) -> Output:
        """Draw pictures: run ``stream`` to its end, with a progress bar where somebody looks."""
        callback, inputs = request.callback_on_step_end, request.callback_on_step_end_tensor_inputs
        check_inputs(inputs)
        steps = run.stream(self, request)
        for last in show_progress(steps, request.progress_bar, self.progress_bar_config):
            if callback is not None and last.step:
                call_back(self, callback, last, inputs)
        assert last.output is not None
        if not request.return_dict:
            return cast(Output, as_tuple(last.output, self.xl))
        return last.output

    def __deepcopy__(self, memo: dict[int, Any]) -> Pipeline:
        """Copy all parts; with what ``optimize`` installed, but without what it recorded."""
        with self.drawing():
            self.send_home()
            result = type(self).__new__(type(self))
            memo[id(self)] = result
            result.__setstate__(copy.deepcopy(self.__dict__, memo))
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy. PyTorch leaves out which blocks are compiled."""
        self.__dict__.update(state)
        if self.optimized.compile or (self.optimized.on and self.device.type == "cuda"):
            self.optimize_as(self.optimized)

    def __repr__(self) -> str:
        return summarize(self)

    @takes(Request)
    def stream(self, request: Request) -> Iterator[Progress]:
        """Draw pictures, yielding after every step; the last ``Progress`` holds the ``output``.

        Raises ArgumentError for an argument that cannot work: at the call, not at the first step,
        and before anything is computed. ``ldm.request.Request`` documents the arguments.
        """
        return run.stream(self, request)

    @checked()
    @reads_model
    def decode(self, x: Tensor) -> Tensor:
        """Decode scaled latents (B, C, h, w) to pixels (B, 3, 8h, 8w), float32 in [-1, 1].

        See ``ldm.latents.decode_latents``. Raises CheckpointError for a result that is not finite
        in any number format, instead of returning a black picture.
        """
        latents.check_latents(x, self.vae.config.latent_channels)
        return run.decode_finite(self, self.vae, x)

    @checked()
    @reads_model
    def preview(self, x: Tensor) -> Tensor:
        """Preview scaled latents (B, C, h, w), as in ``Progress``, as RGB (B, 3, h, w) in [0, 1].

        Nothing is decoded (see ``ldm.techniques.preview``). If the model's folder has no map of its
        own, the first call fits one, which takes some seconds with a large VAE. With a
        ``preview_vae``, or a TAESD as the VAE, it decodes: (B, 3, 8h, 8w).
        """
        latents.check_latents(x, self.vae.config.latent_channels)
        return latents.preview(self.preview_vae or self.vae, x, self.decode)

    @checked()
    def memory_needed(
        self,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        *,
        guidance_scale: float | None = None,
        image: bool = False,
        controlnets: int = 0,
    ) -> MemoryNeeded:
        """Estimate the memory that pictures need, without drawing: see ``ldm.memory``.

        ``print(pipe.memory_needed(1024, 1024, num_images=4))``. None is the model's own.
        num_images: pictures drawn at once. image: whether a picture is read. controlnets: how many
        steer. What cannot fit is refused when it is to be drawn, by the same estimate.
        """
        drawing = (height, width, num_images, guidance_scale, image, controlnets)
        return memory_needed(self, *drawing)

    @contextlib.contextmanager
    def explain(self) -> Iterator[AttentionMaps]:
        """Watch the attention to each word in the pictures that this thread draws inside.

        ``with pipe.explain() as attention:`` draw, then ``attention.words()``; see
        ``ldm.techniques.attention_maps``. The pictures do not change; drawing is a little slower.
        """
        self.need_text("there are no words to look for")
        with watch_attention(self.unet, self.text_models[0].tokenizer) as attention:
            yield attention

    @checked()
    def choose_sampler(self, sampler: str | None, schedule: str | None = None) -> Choice:
        """Return the sampler and schedule for names as in ``stream``; None is the model's own."""
        return preparation.choose_sampler(self, sampler, schedule)

    @checked()
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

        The index is 0 unless the run starts from an image with a ``strength`` in [0, 1]; ``masked``
        says that only a part of it is drawn. Raises ArgumentError for numbers that do not work.
        """
        choice = self.choose_sampler(sampler, schedule)
        return preparation.plan_levels(self, choice, num_inference_steps, strength, masked)


def listed(paths: Any) -> Sequence[Any]:
    """Return one path, several or none as a list; anything else is one, which is an error later."""
    if paths is None:
        return []
    return paths if isinstance(paths, list | tuple) else [paths]
