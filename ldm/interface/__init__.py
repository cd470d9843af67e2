"""What a pipeline offers beside drawing: a summary, a progress bar, the habits of diffusers."""
