"""What is put onto a model and taken off again, exactly."""
