"""A walk between two pictures, as an animation: the first noise turns, and so does the text."""

import torch

from ldm import Pipeline


def walk(first: str, second: str, frames: int = 12, seeds: tuple[int, int] = (1, 2)) -> list:
    """Draw the pictures of the walk; noise at an angle keeps the length that the model expects."""
    pipe = Pipeline.from_pretrained().optimize()
    shape = (1, pipe.vae.config.latent_channels, 16, 16)
    a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds)
    pictures = []
    for frame in range(frames):
        share = frame / (frames - 1)
        angle = torch.tensor(share * torch.pi / 2)
        prompt = f"{first}:{1 - share:.3f} AND {second}:{share:.3f}"  # guidance follows both
        latents = angle.cos() * a + angle.sin() * b
        pictures += pipe(prompt, latents=latents, num_inference_steps=15).images
    return pictures


if __name__ == "__main__":
    first, *rest = walk("a red apple", "a green apple")

    first.save("interpolate.webp", save_all=True, append_images=rest, duration=120, loop=0)
