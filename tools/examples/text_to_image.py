"""Text to image from the modules alone, without the pipeline: DDIM and classifier-free guidance."""

import torch

from ldm import Pipeline
from ldm.images import to_pil


@torch.inference_mode()
def draw(prompt: str, steps: int = 20, guidance_scale: float = 4.0, seed: int = 1) -> torch.Tensor:
    """Draw one picture (1, 3, 128, 128) in [-1, 1]."""
    model = Pipeline.from_pretrained(dtype="float32")  # only for its parts
    vae, unet, scheduler = model.vae, model.unet, model.scheduler

    # CLIP: both texts → token ids (2, 77) → a state for each token (2, 77, D)
    context = model.text_encoder(torch.tensor(model.tokenizer([prompt, ""]))).context

    # DDIM (Song et al. 2021, eq. 12 with η = 0): from pure noise, t falls to 0 in equal steps
    times = torch.linspace(999, 0, steps + 1)
    shape = (1, unet.config.in_channels, 16, 16)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        now, after = scheduler.level(t), scheduler.level(s)
        with_text, without = unet(x.repeat(2, 1, 1, 1), torch.tensor([t, t]), context).split(1)
        guided = without + guidance_scale * (with_text - without)  # Ho & Salimans 2022, eq. 6
        x0 = scheduler.to_x0(guided, x, now)
        eps = (x - now.alpha * x0) / now.sigma
        x = after.alpha * x0 + after.sigma * eps

    return vae.decode(x / vae.config.scaling_factor)


if __name__ == "__main__":
    to_pil(draw("a red car"))[0].save("text_to_image.png")
