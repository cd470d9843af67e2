"""Everything that made the model in weights/: its data, its training and its evaluation."""
