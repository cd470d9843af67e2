"""The tests of `ldm` and of its tools, by package."""
