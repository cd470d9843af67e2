"""Where the faster ways of ``ldm.fast`` are the default."""

OPTIMIZED = ("cpu", "cuda")  # types of devices on which ``ldm generate`` and the server optimize
