"""A sampler of your own: one step between two noise levels, in the loop that all samplers share."""

from dataclasses import dataclass
from functools import partial

import torch

from ldm import Pipeline
from ldm.images import to_pil
from ldm.samplers import Denoised, Method, plan, sample
from ldm.scheduler import Level


@dataclass
class Churned(Method):
    """DDIM of which a tenth of the noise is fresh at every step (Song et al. 2021, eq. 12)."""

    def step(self, x: torch.Tensor, a: Level, b: Level) -> tuple[torch.Tensor, torch.Tensor]:
        x0 = self.x0(x, a)
        eps = 0.99**0.5 * (x - a.alpha * x0) / a.sigma + 0.1 * self.noise()
        return b.alpha * x0 + b.sigma * eps, x0


@torch.inference_mode()
def draw(prompt: str, steps: int = 20) -> torch.Tensor:
    """Draw one picture (1, 3, 128, 128) in [-1, 1]."""
    model = Pipeline.from_pretrained(dtype="float32")  # only for its parts
    context = model.text_encoder(torch.tensor(model.tokenizer([prompt, ""]))).context

    def denoise(x: torch.Tensor, level: Level, step: int) -> Denoised:
        with_text, without = model.unet(x.repeat(2, 1, 1, 1), torch.full((2,), level.t), context)
        return Denoised(model.scheduler.to_x0(4 * with_text[None] - 3 * without[None], x, level))

    noise = partial(torch.randn, 1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    *_, (x, _, _) = sample(Churned, denoise, noise(), plan(model.scheduler, "ddim", steps), noise)
    return model.vae.decode(x / model.vae.config.scaling_factor)


if __name__ == "__main__":
    to_pil(draw("a red car"))[0].save("own_sampler.png")
