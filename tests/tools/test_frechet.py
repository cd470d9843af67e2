"""The Fréchet distance against closed forms."""

import numpy as np
import pytest

from tools.builtin_model.evaluation import frechet


def test_gaussians_of_known_moments() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T  # covariance exactly I
    scale, shift = np.diag([2.0, 3.0, 0.5]), np.array([1.0, -2.0, 0.0])
    # Diagonal: |μ|² + Σ (σₐ − σ_b)².
    assert frechet.distance(x, x @ scale + shift) == pytest.approx(5 + 1 + 4 + 0.25, abs=1e-6)
    # Not commuting: tr (Σₐ Σ_b)^½ by the eigenvalues of the product.
    a, b = (rng.normal(size=(3, 3)) for _ in range(2))
    product = np.linalg.eigvals((a @ a.T) @ (b @ b.T)).real
    expected = np.trace(a @ a.T + b @ b.T) - 2 * np.sqrt(product).sum()
    assert frechet.distance(x @ a.T, x @ b.T) == pytest.approx(expected, abs=1e-6)


def test_fewer_pictures_than_features() -> None:
    x = np.random.default_rng(0).normal(size=(5, 20))
    assert frechet.distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet.distance(x, x + 1) == pytest.approx(20, abs=1e-6)


def test_principal_directions() -> None:
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    x = rng.normal(size=(5000, 4)) * [3.0, 2.0, 1.0, 0.1] @ rotation + 7
    found = frechet.principal(x, 2)
    assert found.shape == (4, 2)
    assert np.abs(found.T @ found - np.eye(2)).max() < 1e-6
    assert np.abs(np.abs(found.T @ rotation[:2].T) - np.eye(2)).max() < 0.05
    # A distance in these directions is the part of it that lies there.
    moved = x + rotation[0] + 5 * rotation[3]
    assert frechet.distance(x @ found, moved @ found) == pytest.approx(1, abs=0.05)
