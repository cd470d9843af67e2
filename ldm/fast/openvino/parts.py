"""What OpenVINO computes of a model: the U-Net, the VAE's halves, the text encoders' layers.

Each calls the plain modules for what is not converted, and says so with a warning. The time's
embedding is computed by PyTorch: in bfloat16 the engine would round the angles of its sines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ldm.clip import CLIPTextEncoder, EncoderStack
from ldm.fast.openvino.converted import Converted
from ldm.fast.openvino.library import Engine
from ldm.fast.replace import Replacement
from ldm.unet import ImagePrompt, Residuals, UNet, check_given
from ldm.vae import AutoencoderKL, Decoder, Encoder

ROWS, TOKENS, SIDE = 2, 7, 8  # of examples
VIEW = "a picture changes its layers (tiling, DeepCache, explain, references, ControlLLLite, …)"
H = TypeVar("H", bound="EngineHalf")


class UNetCall(nn.Module):
    """A U-Net as a function of float32 tensors."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, temb: Tensor, context: Tensor | None = None) -> Tensor:
        """As ``UNet.forward``; x's time is in temb."""
        dtype = self.unet.conv_in.weight.dtype
        text = None if context is None else context.to(dtype)
        return self.unet(x.to(dtype), temb, text, temb=temb.to(dtype)).float()


class HalfCall(nn.Module):
    """Half of a VAE as a function of float32 tensors."""

    def __init__(self, coder: Encoder | Decoder) -> None:
        super().__init__()
        self.coder = coder

    def forward(self, x: Tensor) -> Tensor:
        """As that half's ``forward``."""
        return self.coder(x.to(self.coder.conv_in.weight.dtype)).float()


class StackCall(nn.Module):
    """A text encoder's layers as a function of float32 tensors."""

    def __init__(self, stack: EncoderStack, skip: int) -> None:
        super().__init__()
        self.stack, self.skip = stack, skip

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return ``EncoderStack.forward``'s states, the one there is without ``skip`` once."""
        dtype = next(self.stack.parameters()).dtype
        context, last = self.stack(x.to(dtype), self.skip)
        return (context.float(), last.float()) if self.skip else (last.float(),)


class EngineUNet:
    """A U-Net to call in the place of ``unet``."""

    def __init__(self, unet: UNet, engine: Engine) -> None:
        """Convert nothing yet."""
        self.unet, self.config, self.engine = unet, unet.config, engine
        self.network = Converted("the U-Net", unet, UNetCall(unet), engine, example_of(unet))

    def parameters(self) -> Iterator[nn.Parameter]:
        """As ``UNet.parameters``."""
        return self.unet.parameters()

    @property
    def unfit(self) -> str | None:
        """Say why this network is PyTorch's; None if it is not."""
        if self.config.resnet_time_scale_shift == "scale_shift":
            return "OpenVINO (2026.0 to 2026.4) crashes on its adaptive group normalisation"
        if self.config.cross_attention_dim is None:
            return "without a text, OpenVINO's bfloat16 was six times as far off as PyTorch's"
        return None

    def refuse_view(self) -> None:
        """Warn that PyTorch computes a run whose layers are others."""
        self.network.refuse(VIEW)

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        residuals: Residuals | None = None,
        features: Sequence[Tensor] = (),
        image_prompt: ImagePrompt | None = None,
        **conditioning: Tensor | None,
    ) -> Tensor:
        """As ``UNet.forward``."""
        steered = {
            "ControlNets": residuals is not None,
            "T2I-Adapters": bool(features),
            "IP-Adapters": bool(image_prompt),
        }
        if any(steered.values()):
            names = " and ".join(name for name, used in steered.items() if used)
            self.network.refuse(f"{names} add to its activations")
        elif self.unfit is not None:
            self.network.refuse(self.unfit)
        else:
            y = self._compute(x, t, context, **conditioning)
            if y is not None:
                return y
        return self.unet(
            x,
            t,
            context,
            residuals=residuals,
            features=features,
            image_prompt=image_prompt,
            **conditioning,
        )

    def _compute(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        guidance_scale: Tensor | None = None,
        class_labels: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor | None:
        """Return the output; None where PyTorch is to compute it."""
        check_given("context", context, self.config.cross_attention_dim is not None)
        check_given("class_labels", class_labels, self.config.class_conditional)
        if temb is None:
            given = (t, pooled, time_ids, guidance_scale, class_labels)
            temb = self.unet.embed(*given, dtype=x.dtype)
        outputs = self.network(x, temb, *([] if context is None else [context]))
        return None if outputs is None else outputs[0].to(x.dtype)


class EngineHalf(Replacement):
    """Half of a VAE, by OpenVINO; its views, such as those of seamless tiles, by PyTorch."""

    name: str
    network: Converted

    @classmethod
    def by(cls: type[H], half: Encoder | Decoder, engine: Engine, channels: int) -> H:
        """Make the replacement; channels: of its input."""
        result, shape = cls.of(half), (1, channels, 8 * SIDE, 8 * SIDE)
        result.network = Converted(cls.name, half, HalfCall(half), engine, [shape])
        return result

    def forward(self, x: Tensor) -> Tensor:
        if self._modules is not self.replaced[0]._modules:
            self.network.refuse(VIEW)
            return super().forward(x)
        outputs = self.network(x)
        return super().forward(x) if outputs is None else outputs[0].to(x.dtype)


class EngineEncoder(EngineHalf, Encoder):
    """``Encoder`` by OpenVINO."""

    name = "the VAE's encoder"


class EngineDecoder(EngineHalf, Decoder):
    """``Decoder`` by OpenVINO."""

    name = "the VAE's decoder"


class EngineStack(Replacement, EncoderStack):
    """``EncoderStack`` by OpenVINO, converted for each number of layers to leave out."""

    engine: Engine
    networks: dict[int, Converted]

    def forward(self, x: Tensor, skip: int = 0) -> tuple[Tensor, Tensor]:
        if skip not in self.networks:
            (stack,) = self.replaced
            assert isinstance(stack, EncoderStack)
            call, shape = StackCall(stack, skip), (ROWS, TOKENS, x.shape[-1])
            network = Converted("a text encoder", stack, call, self.engine, [shape])
            self.networks[skip] = network
        outputs = self.networks[skip](x)
        if outputs is None:
            return super().forward(x, skip)
        return outputs[0].to(x.dtype), outputs[-1].to(x.dtype)


def example_of(unet: UNet) -> list[tuple[int, ...]]:
    """Return shapes of inputs in which no level is too narrow for its usual layers."""
    config = unet.config
    side = SIDE * 2 ** max(0, config.levels - 2)
    x = (ROWS, config.in_channels, side, side)
    shapes: list[tuple[int, ...]] = [x, (ROWS, 4 * config.block_out_channels[0])]
    if config.cross_attention_dim is not None:
        shapes.append((ROWS, TOKENS, config.cross_attention_dim))
    return shapes


def install(
    unet: UNet, vae: nn.Module, encoders: Sequence[CLIPTextEncoder], engine: Engine
) -> EngineUNet:
    """Let OpenVINO compute a model's parts; return what is called in the place of the U-Net.

    ``ldm.fast.install.slow_down`` takes it off the others.
    """
    if isinstance(vae, AutoencoderKL):
        config = vae.config
        vae.encoder = EngineEncoder.by(vae.encoder, engine, config.in_channels)
        vae.decoder = EngineDecoder.by(vae.decoder, engine, config.latent_channels)
    for encoder in encoders:
        stack = EngineStack.of(encoder.text_model.encoder)
        stack.engine, stack.networks = engine, {}
        encoder.text_model.encoder = stack
    return EngineUNet(unet, engine)
