"""Parts of `tools/evaluate.py`: prompts, judges, figures, pictures of the result."""
