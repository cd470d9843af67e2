"""Faster ways to compute what the readable modules do, with the same results but for rounding.

``Pipeline.optimize()`` puts them on, ``Pipeline.optimize(False)`` takes them off; each is a file:

- ``packed``: weights that lie in memory as oneDNN reads them, activations done with the products;
- ``norm``: group normalisation without copies in channels_last memory;
- ``attention``: the text's keys and values computed once for all steps;
- ``time_cache``: what depends on the time alone, once for all steps of a run;
- ``strips``: the VAE's decoder from strip to strip, in less memory; in thin ones also the plain
  pipeline decodes where memory would not do otherwise (``memory``);
- ``install``: how layers get these and lose them again.

For CUDA, measured once, on an H100 (see the README): ``graphs``, ``compiled``, ``offload``.

And modes that draw another picture, to be asked for by themselves: ``deepcache`` and ``int8``.
"""

from ldm.fast.cpu import adapt_to_cpu
from ldm.fast.install import slow_down, speed_up
from ldm.fast.memory import decode_needs_strips
from ldm.fast.strips import decode_in_strips

__all__ = ["adapt_to_cpu", "decode_in_strips", "decode_needs_strips", "slow_down", "speed_up"]
