"""The parts of a model put together: checked against each other, with what follows from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm.adapters.lora import Loras
from ldm.adapters.textual_inversion import TextualInversions
from ldm.checkpoints.source import find_own_controlnet, find_own_ip_adapter
from ldm.classes.classifier import Classifier
from ldm.classes.labels import Classes
from ldm.clip import CLIPTextEncoder
from ldm.config import SchedulerConfig
from ldm.config.generation import Defaults, FewSteps
from ldm.config.tasks import task_of
from ldm.control.control_lllite import Network
from ldm.control.image_prompts import LoadedIPAdapter
from ldm.control.t2i_adapter import T2IAdapter
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.fast.optimize import Optimized
from ldm.images.generation_info import OWN_CONTROLNET, adapter_name
from ldm.latents import Codec, Pixels
from ldm.loading.compatibility import check_parts
from ldm.loading.origin import Origin
from ldm.loading.single_file import names_of
from ldm.loading.turns import Hold, Turns, check_process
from ldm.request import Request
from ldm.scheduler import DDPMScheduler
from ldm.taesd import DECODER_ALONE, AutoencoderTiny
from ldm.text.conditioning import TextModel
from ldm.text.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

MODEL_PARTS = (
    *("vae", "unet", "scheduler", "defaults", "force_zeros_for_empty_prompt"),
    *("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    *("id2label", "classifier"),
)


class Model:
    """The parts of a model: of the Stable Diffusion family, or one that draws pixels.

    The parts show which family it is: the U-Net's inputs and the number of its channels.

    Attributes:
        xl: whether the U-Net is also conditioned on sizes, as SDXL's is.
        task: what the U-Net reads beside x; see ``ldm.config.tasks``.
        inpaints: whether it reads a mask and the masked image.
        edits: whether it reads the image to edit.
        classes: of a model without text; None for a model with text.
        defaults: values of arguments that a request leaves out.
        inversions, loras: the adapters on the parts.
        controlnets, t2i_adapters: what steers the U-Net by pictures, by name, in the order of
            loading.
        ip_adapters: what reads pictures as prompts, likewise.
        folder: that the model was loaded from; None for a file or parts.
        preview_vae: what decodes previews, in the place of rough colours.
        optimized: how the parts compute faster.
        origin: what it was loaded from.
        turns: who draws with it or changes it now; see ``ldm.loading.turns``.
    """

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | None,
        text_encoder: CLIPTextEncoder | None,
        tokenizer: CLIPTokenizer | None,
        unet: UNet,
        scheduler: DDPMScheduler | None = None,
        defaults: Defaults | None = None,
        *,
        text_encoder_2: CLIPTextEncoder | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        force_zeros_for_empty_prompt: bool = False,
        id2label: Mapping[str, str] | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        """Put the parts together and check them.

        vae, text_encoder, tokenizer: None if the U-Net draws pixels, without a text.
        scheduler: None is Stable Diffusion's noise schedule, with DDPM as sampler.
        SDXL has a second text encoder; its refiner, only that one.
        force_zeros_for_empty_prompt: for a missing negative prompt, zeros, not the states of "".
        id2label: the names of a model's classes, "0" first; see ``ldm.classes.labels``.
        classifier: of noisy pictures, for ``classifier_scale``.
        Raises CheckpointError for parts that do not fit each other.
        """
        self.unet = unet
        self.vae: Codec = vae or Pixels(unet.config.in_channels)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.text_encoder_2, self.tokenizer_2 = text_encoder_2, tokenizer_2
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.id2label, self.classifier = id2label, classifier
        for network in filter(None, (unet, vae, classifier)):
            adapt_to_cpu(network)
        config = (
            scheduler.config
            if scheduler
            else SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        )
        if not isinstance(self.vae, Pixels):
            # Old Stable Diffusion's configs lack both; diffusers' pipeline always sets them so.
            config = replace(config, steps_offset=1, clip_sample=False)
        self.scheduler = DDPMScheduler(config)
        self.xl = unet.config.addition_embed_type is not None
        pairs = {
            "text_encoder": (tokenizer, text_encoder),
            "text_encoder_2": (tokenizer_2, text_encoder_2),
        }
        self.inversions = TextualInversions(
            {
                part: TextModel(words, encoder)  # type: ignore[arg-type]  # both, or neither
                for part, (words, encoder) in pairs.items()
                if encoder is not None
            }
        )
        encoders = [model.encoder.config for model in self.text_models]
        judge = classifier.config if classifier else None
        check_parts(self.vae.config, unet.config, config, encoders, judge, bool(id2label))
        task = task_of(unet.config.in_channels, self.vae.config.latent_channels)
        assert task is not None  # see check_parts
        self.task = task
        self.inpaints, self.edits = task == "inpaint", task == "edit"
        self.time_ids = unet.config.time_ids(encoders[-1].projection_dim) if encoders else 0
        self.classes = None if encoders else Classes.of(unet.config, judge, id2label)
        self.defaults = defaults or Defaults.of(unet.config, config, task)
        if self.classes and self.classes.no_class is None:  # nothing to guide away from
            self.defaults = replace(self.defaults, guidance_scale=1.0)

        named = {"unet": unet, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
        self.loras = Loras(
            {name: part for name, part in named.items() if part is not None},
            names_of(unet.config),
            self.inversions,
        )
        self.controlnets: dict[str, Network] = {}
        self.t2i_adapters: dict[str, T2IAdapter] = {}
        self.ip_adapters: dict[str, LoadedIPAdapter] = {}
        self.folder: Path | None = None
        self.preview_vae: AutoencoderTiny | None = None
        self.optimized = Optimized(by_default=True)
        self.turns = Turns()
        self.origin = Origin()

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments that make this model."""
        return {name: getattr(self, name) for name in MODEL_PARTS}

    def used_controlnets(self, steered: bool) -> dict[str, Network]:
        """Return the ControlNets of a run: all that were loaded, else the model's own.

        steered: whether control pictures are given. Only then the model's own is used, which is
        loaded when it is first needed.
        """
        loaded = {name: each for name, each in self.controlnets.items() if name != OWN_CONTROLNET}
        if loaded or not steered or self.own_controlnet is None:
            return loaded
        self.load_own_controlnet()
        return {OWN_CONTROLNET: self.controlnets[OWN_CONTROLNET]}

    @property
    def own_controlnet(self) -> Path | None:
        """The folder of a ControlNet that belongs to the model; see ``used_controlnets``."""
        return None if self.folder is None else find_own_controlnet(self.folder)

    @property
    def own_ip_adapter(self) -> Path | None:
        """The file of an IP-Adapter that belongs to the model."""
        return None if self.folder is None else find_own_ip_adapter(self.folder)

    def load_own_controlnet(self) -> None:
        """See ``ldm.interface.controlnets``."""
        raise NotImplementedError

    def load_own_adapters(self, request: Request) -> None:
        """Load the ControlNet and the IP-Adapter of the model's folder that a request needs."""
        self.used_controlnets(request.control_image is not None)
        if request.ip_adapter_image is not None or request.ip_adapter_image_embeds is not None:
            own_ip_adapter(self)

    @contextlib.contextmanager
    def drawing(self, queue: bool = True) -> Iterator[Hold]:
        """Let nothing change the model inside, except for this thread; see ``Turns.drawing``.

        Raises ArgumentError in a process that cannot draw with it.
        """
        check_process(self.device)
        # What offloading brings to the GPU, another run would take away.
        alone = lambda: self.optimized.offload is not None  # noqa: E731
        with self.turns.drawing(alone, queue) as hold:
            yield hold

    @property
    def adapters(self) -> dict[str, Any]:
        """The IP-Adapters' networks, by name."""
        return {f"IP-Adapter {name}": one.network for name, one in self.ip_adapters.items()}

    @property
    def text_models(self) -> list[TextModel]:
        """The text encoders with their tokenizers, which know the words loaded."""
        return list(self.inversions.models.values())

    @property
    def device(self) -> torch.device:
        """The device that the parts compute on."""
        offload = self.optimized.offload
        return offload.device if offload else next(self.unet.parameters()).device

    def send_home(self) -> None:
        """Take what ``optimize(offload=…)`` brought to the GPU off it, until the next run."""
        if self.optimized.offload:
            self.optimized.offload.send_home()

    @property
    def int8(self) -> bool:
        """Whether the U-Net computes in 8 bits."""
        return self.optimized.int8

    @property
    def fp8(self) -> bool:
        """Whether the U-Net computes in 8-bit floating-point numbers."""
        return self.optimized.fp8

    @property
    def int8_weights(self) -> bool:
        """Whether weights have 8 bits on the GPU."""
        return self.optimized.int8_weights

    @property
    def own_few_steps(self) -> FewSteps | None:
        """How the model draws in few steps, by a LoRA in its folder; see ``use_few_steps``."""
        return None if self.folder is None else self.defaults.few_steps

    @property
    def few_steps(self) -> bool:
        """Whether the model draws in few steps, by the LoRA in its folder."""
        return self.loras.own is not None

    def default_size(self) -> tuple[int, int]:
        """Return the (height, width) in pixels that the model was trained for."""
        side = (self.unet.config.sample_size or 64) * self.vae.config.scale
        return side, side

    def make_ip_adapter(
        self, file: Path, folder: str | None, image_encoder: str | Path | None, own: bool = False
    ) -> LoadedIPAdapter:
        """Load an IP-Adapter's file with its image encoder; see ``load_ip_adapter``."""
        # Only here: most models never load one.
        from ldm.loading.image_encoder import find_image_encoder, load_image_encoder
        from ldm.loading.ip_adapter import encoder_folders, load_ip_adapter

        dtype = next(self.unet.parameters()).dtype
        network = load_ip_adapter(file, self.unet.config, dtype, self.device)
        place = None
        if image_encoder is not None:
            place = Path(image_encoder).expanduser()
        elif folder is not None:
            places = encoder_folders(file, folder, self.folder)
            place = find_image_encoder(places, network.config)
        encoder = None
        if place is not None:
            encoder = load_image_encoder(place, network.config, dtype, self.device)
        return LoadedIPAdapter(network, encoder, adapter_name(file), own=own)

    def need_encoder(self) -> None:
        """Raise ArgumentError for a VAE that cannot encode an image."""
        if isinstance(self.vae, AutoencoderTiny) and self.vae.encoder is None:
            raise ArgumentError(DECODER_ALONE)

    def need_text(self, why: str) -> None:
        """Raise ArgumentError for a model without text."""
        if self.classes is not None:
            raise ArgumentError(f"this model reads no text: {why}")


def own_ip_adapter(model: Model) -> None:
    """Load the IP-Adapter in the model's own folder, if there is one and no other is loaded."""
    file = model.own_ip_adapter
    if file is not None and not model.ip_adapters:
        with model.turns.changing():
            if not model.ip_adapters:
                adapter = model.make_ip_adapter(file, "image_encoder", None, own=True)
                model.ip_adapters["own"] = adapter
