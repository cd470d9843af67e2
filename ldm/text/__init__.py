"""Text to what the U-Net reads: tokens, prompt grammar, conditioning."""
