"""Faster ways to compute what the readable modules do, with the same results but for rounding.

``Pipeline.optimize()`` puts them on, ``Pipeline.optimize(False)`` takes them off; each is a file:

- ``packed``: weights that lie in memory as oneDNN reads them, activations done with the products;
- ``norm``: group normalisation without copies in channels_last memory;
- ``attention``: the text's keys and values computed once for all steps;
- ``swap``: how layers get these and lose them again.
"""

from ldm.fast.swap import slow_down, speed_up

__all__ = ["slow_down", "speed_up"]
