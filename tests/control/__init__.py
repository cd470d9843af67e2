"""Tests of ``ldm.control``."""
