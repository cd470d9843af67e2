"""A page and HTTP interfaces above ``Pipeline.stream``: ``ldm serve``. See README.md."""
