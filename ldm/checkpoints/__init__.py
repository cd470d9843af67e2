"""Weight files and model folders: names and tensors, without any computing."""
