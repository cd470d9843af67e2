"""Files and folders of models → the parts of a pipeline, and back."""
