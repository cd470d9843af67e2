"""Damaged input for all readers of files and texts of others: ``python -m tests.fuzz``."""
