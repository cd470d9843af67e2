"""Ways of drawing beside text to image, each of which a pipeline can go without."""
