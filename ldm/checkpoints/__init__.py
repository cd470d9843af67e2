"""Weight files and model folders: names and tensors, nothing that computes."""
