"""Train DDPM on real digits of 8 × 8 pixels in a minute, with the modules and a plain loop."""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from ldm import DDPMScheduler, Pipeline, UNet
from ldm.config import SchedulerConfig, UNetConfig
from ldm.images import image_grid

CONFIG = UNetConfig(
    sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 64),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"), cross_attention_dim=None,
)  # fmt: skip


def train(steps: int = 500, batch: int = 128) -> Pipeline:
    """Minimise L_simple (Ho et al. 2020, eq. 14 and algorithm 1)."""
    torch.manual_seed(0)
    digits = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1  # (1797, 1, 8, 8)
    unet, scheduler = UNet(CONFIG), DDPMScheduler(SchedulerConfig())
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    for step in range(steps):
        x0, t = digits[torch.randint(len(digits), (batch,))], torch.randint(1000, (batch,))
        noise = torch.randn_like(x0)
        loss = F.mse_loss(unet(scheduler.add_noise(x0, noise, t), t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", file=sys.stderr)
    return Pipeline(None, None, None, unet.eval(), scheduler)


if __name__ == "__main__":
    images = train()("", num_images_per_prompt=16, seed=1, num_inference_steps=250).images
    image_grid(images, columns=4).save("train_ddpm.png")
