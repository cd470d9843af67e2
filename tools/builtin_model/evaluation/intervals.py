"""How sure a figure is: 95 % intervals."""

import math
from collections.abc import Callable, Sequence

import numpy as np

Z = 1.959964  # a normal variable is within so many deviations in 95 % of cases
RESAMPLES = 200
Interval = tuple[float, float]


def wilson(hits: int, count: int) -> Interval | None:
    """Interval of a share by the number of hits (Wilson 1927); None of nothing."""
    if not count:
        return None
    share, square = hits / count, Z**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(share * (1 - share) / count + square / (4 * count**2)) * Z
    half /= 1 + square / count
    # At either end it is exact; rounding is not.
    return (0.0 if not hits else middle - half), (1.0 if hits == count else middle + half)


def of_verdicts(verdicts: Sequence[bool]) -> Interval | None:
    """``wilson`` of verdicts."""
    return wilson(sum(verdicts), len(verdicts))


def bootstrap(
    statistic: Callable[..., float],
    counts: Sequence[int],
    resamples: int = RESAMPLES,
    most: float = math.inf,
) -> Interval:
    """Interval of a `statistic` of samples of `counts` members, by resampling (Efron 1979).

    The statistic, in [0, `most`], gets the indices of each sample that is drawn with replacement.
    Distances and neighbours of such samples are biased, as members recur: so it is the deviation
    of resamples that counts, around the statistic of the samples themselves.
    """
    rng = np.random.default_rng(0)
    found = [statistic(*(rng.integers(0, n, n) for n in counts)) for _ in range(resamples)]
    value, half = statistic(*(np.arange(n) for n in counts)), Z * float(np.std(found, ddof=1))
    return max(value - half, 0.0), min(value + half, most)


def difference(a: float, of_a: Interval, b: float, of_b: Interval) -> Interval:
    """Interval of b − a, of two figures measured apart, from theirs (Newcombe 1998, method 10)."""
    low = b - a - math.hypot(b - of_b[0], of_a[1] - a)
    return low, b - a + math.hypot(of_b[1] - b, a - of_a[0])
