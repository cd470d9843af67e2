"""Models of classes: labels, a classifier of noisy pictures, and guidance by it."""
