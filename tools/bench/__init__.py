"""Speed and memory of ldm beside diffusers: `python -m tools.bench`."""
