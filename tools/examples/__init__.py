"""Examples of at most forty lines; each runs by ``python -m tools.examples.NAME``."""
