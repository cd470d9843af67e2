"""The HTTP interfaces: each file is one, and holds no more than its shape."""
