"""Training: one loop, and a short recipe for each part of the model."""
