"""Parts of `tools/build_icons.py`: where icons come from, what they show, how they vary."""
