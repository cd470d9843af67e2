"""Where icons come from, what they show, how they vary: parts of `build_icons`."""
