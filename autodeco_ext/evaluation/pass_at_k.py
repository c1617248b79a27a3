"""pass@k and its uncertainty, with the problems as the independent observations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

CONFIDENCE = 0.95

INTERVAL_METHOD = (
    "95 % Wilson intervals, with the uncertainty measured between problems (the samples of one"
    " problem are not independent)"
)
DIFFERENCE_METHOD = "95 % normal interval of the mean difference per problem"


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k answers is right, from n answers of which c
    are.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).

    Example:
        >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 4)
        (0.25, 1.0)
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass_at_k: k must be in 1 .. {samples}, got {k}")
    if not 0 <= correct <= samples:
        raise ValueError(f"pass_at_k: correct must be in 0 .. {samples}, got {correct}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_estimate(per_problem: Sequence[float]) -> Estimate:
    """Mean of values in [0, 1], one per problem, with a Wilson interval.

    With s the standard error of the mean over problems, Wilson's n is m (1 - m) / s^2 (for values
    of 0 and 1 that is the number of problems, up to n - 1 for n); where all problems agree s says
    nothing and n is their number.

    Example:
        >>> mean_estimate([0.0, 0.0, 0.0, 0.0]).high > 0.3
        True
    """
    count = len(per_problem)
    if count == 0:
        raise ValueError("mean_estimate: per_problem must not be empty")
    mean = fmean(per_problem)
    squared_error = variance(per_problem) / count if count > 1 else 0.0
    observations = mean * (1 - mean) / squared_error if squared_error > 0 else float(count)
    z = _z()
    centre = (mean + z * z / (2 * observations)) / (1 + z * z / observations)
    spread = math.sqrt(mean * (1 - mean) / observations + (z / (2 * observations)) ** 2)
    half = z * spread / (1 + z * z / observations)
    return Estimate(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def mean_difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of first - second over the same problems, with a normal interval of the paired
    differences.

    Example:
        >>> mean_difference([1.0, 0.5], [1.0, 0.5])
        Estimate(value=0.0, low=0.0, high=0.0)
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"mean_difference: both must have the same number of problems, got {len(first)} and"
            f" {len(second)}"
        )
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = fmean(differences)
    error = (
        math.sqrt(variance(differences) / len(differences)) if len(differences) > 1 else math.inf
    )
    return Estimate(mean, mean - _z() * error, mean + _z() * error)


def _z() -> float:
    return NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
