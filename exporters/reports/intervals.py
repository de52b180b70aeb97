"""Intervals of proportions: what an accuracy measured on few samples says."""

from __future__ import annotations

from math import comb, inf, sqrt

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson(successes: int, samples: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); (0, 1) without samples."""
    if samples == 0:
        return 0.0, 1.0
    share, spread = successes / samples, z * z / samples
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / samples + spread / (4 * samples))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(total: float, squares: float, samples: int, z: float = Z95) -> tuple[float, float]:
    """95 % interval of a mean, from the sum of values and of their squares; without limits below two samples."""
    if samples < 2:
        return -inf, inf
    mean = total / samples
    half = z * sqrt(max(squares - samples * mean**2, 0.0) / (samples - 1) / samples)
    return mean - half, mean + half


def within(interval: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """An interval cut where values cannot be."""
    return max(interval[0], low), min(interval[1], high)


def paired_difference(both: int, only_first: int, only_second: int, samples: int) -> tuple[float, float]:
    """95 % interval of second minus first, two proportions on the same samples (Newcombe 1998, method 10).

    `both` samples were right in both, `only_first` and `only_second` in one of them; (-1, 1) without samples.
    """
    if samples == 0:
        return -1.0, 1.0
    neither = samples - both - only_first - only_second
    first, second = both + only_first, both + only_second
    difference = (second - first) / samples
    low1, high1 = wilson(first, samples)
    low2, high2 = wilson(second, samples)
    p1, p2 = first / samples, second / samples
    margins = first * (samples - first) * second * (samples - second)
    numerator = float(both * neither - only_first * only_second)
    corrected = max(numerator - samples / 2, 0.0) if numerator > 0 else numerator  # Newcombe's, for continuity
    phi = corrected / sqrt(margins) if margins else 0.0
    down = (p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2
    up = (high2 - p2) ** 2 - 2 * phi * (high2 - p2) * (p1 - low1) + (p1 - low1) ** 2
    return difference - sqrt(max(down, 0.0)), difference + sqrt(max(up, 0.0))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value that the samples on which two answerers differ favour neither (McNemar's test)."""
    total, fewer = only_first + only_second, min(only_first, only_second)
    tail: float = sum(comb(total, k) for k in range(fewer + 1)) / 2.0**total
    return min(1.0, 2 * tail)
