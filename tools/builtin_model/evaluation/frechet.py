"""Fréchet distance between two sets of features (Heusel et al. 2017, equation 6)."""

import numpy as np

DIRECTIONS = 32  # in which the evaluation compares a classifier's features


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖μₐ − μ_b‖² + tr(Σₐ + Σ_b − 2·(Σₐ Σ_b)^½) of features (N, D) and (M, D), N and M ≥ 2.

    Few samples make it larger: compare only distances of the same numbers of pictures.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    # tr (Σₐ Σ_b)^½ = tr (Σₐ^½ Σ_b Σₐ^½)^½, which is symmetric.
    half = root(first)
    cross = np.linalg.eigvalsh(half @ second @ half).clip(0)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return float(shift + np.trace(first) + np.trace(second) - 2 * np.sqrt(cross).sum())


def principal(features: np.ndarray, count: int) -> np.ndarray:
    """Return the principal directions of features (N, D), largest first: orthonormal (D, count).

    The distance of few samples in many dimensions is mostly their number's; in these directions
    alone (``features @ principal(…)``) it is less so.
    """
    centred = features - features.mean(0)
    return np.linalg.svd(centred, full_matrices=False)[2][:count].T


def root(matrix: np.ndarray) -> np.ndarray:
    """Compute the square root of a symmetric (D, D) without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
