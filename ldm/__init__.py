"""ldm: text-conditioned latent diffusion, from scratch. Importing it touches no disk, network or GPU."""

__version__ = "0.1.0"
