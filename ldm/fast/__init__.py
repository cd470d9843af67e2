"""Faster ways to compute what the readable modules do, with the same results except rounding.

``Pipeline.optimize()`` installs them, ``Pipeline.optimize(False)`` removes them:

- ``packed``: weights in oneDNN's memory format, activations fused with the products;
- ``norm``: group normalisation without copies in channels_last memory;
- ``attention``: the text's keys and values computed once for all steps;
- ``time_cache``: what depends on the time alone, once for all steps of a run;
- ``strips``: the VAE's decoder strip by strip, in less memory; the plain pipeline uses it, too, if
  memory is short (``memory``);
- ``install``, ``replace``: how these take the places of plain layers and give them back.

For CUDA, installed by default there, and not measured since (see the README): ``graphs`` and
``recorder``, ``fused``, ``sdpa``, ``copies``; for who asks, ``compiled``, ``offload``,
``int8_weights`` and ``sequential``.

``openvino`` lets another engine compute the networks, for who asks.

``deepcache``, ``int8`` and ``fp8`` draw another picture, so each has an option of its own.

``cpu`` is always installed: workarounds for PyTorch's CPU kernels. ``onednn`` alone names PyTorch's
private operators.
"""

from ldm.fast.cpu import adapt_to_cpu
from ldm.fast.install import slow_down, speed_up
from ldm.fast.memory import decode_needs_strips
from ldm.fast.strips import decode_in_strips

__all__ = ["adapt_to_cpu", "decode_in_strips", "decode_needs_strips", "slow_down", "speed_up"]
