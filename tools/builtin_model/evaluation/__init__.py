"""Parts of `evaluate`: prompts, judges, figures, pictures of the result."""
