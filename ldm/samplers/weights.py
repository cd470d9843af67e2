"""Weights of multistep methods: integrals of the polynomial through the values of past steps.

Time runs over u = 0 … 1 in a step; the nodes are where in u the values were found: 0 is the start
of the step, earlier ones are negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1


def adams_weights(nodes: Sequence[float]) -> list[float]:
    """Compute ∫₀¹ ℓ_k(u) du for each node's Lagrange polynomial ℓ_k: Adams' methods on any grid."""
    return _integrate(nodes, [1 / (j + 1) for j in range(len(nodes))])


def exponential_weights(nodes: Sequence[float], h: float) -> list[float]:
    """Compute ∫₀¹ h e^{(u−1)h} ℓ_k(u) du for each node; their sum is 1 − e^{−h}.

    Source: Hochbruck & Ostermann 2010, "Exponential integrators", section 2.5. h must not be 0.
    """
    moments = [-expm1(-h)]
    for j in range(1, len(nodes)):  # by parts
        moments.append(1 - j / h * moments[-1])
    return _integrate(nodes, moments)


def _integrate(nodes: Sequence[float], moments: list[float]) -> list[float]:
    """Integrate each node's Lagrange polynomial, given the integrals of 1, u, u² …"""
    weights = []
    for node in nodes:
        polynomial, scale = [1.0], 1.0
        for other in nodes:
            if other != node:  # times (u − other)
                shifted, scaled = [0.0, *polynomial], [*(-other * c for c in polynomial), 0.0]
                polynomial = [s + c for s, c in zip(shifted, scaled, strict=True)]
                scale *= node - other
        weights.append(sum(c * m for c, m in zip(polynomial, moments, strict=True)) / scale)
    return weights
