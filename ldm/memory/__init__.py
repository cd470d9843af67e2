"""How much memory pictures need, counted from configurations, and how much there is.

- ``system``: what this process may still take, within every limit that is set for it;
- ``layers``, ``networks``: what a call of a network holds at its peak;
- ``estimate``: the weights, and each part of a run;
- ``refusal``: what cannot fit is an error before it begins, with what would fit;
- ``shortage``: errors of libraries that ran out of memory nevertheless.

Nothing here imports PyTorch, or reads a tensor.
"""
