"""The statistics of a comparison: arrays in, numbers out. They know nothing of runs.

A difference is `arm - reference`, so that a negative one means a lower loss. Where an interval cannot be had (one seed, one
document) the answer is None, never a guess.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
_OVERFLOWS = 700.0  # nats; exp of more is infinite in float64


@dataclass(frozen=True)
class Interval:
    """A mean, its two-sided confidence limits at `CONFIDENCE`, and the two-sided p-value of a mean of zero.

    `low`, `high` and `p` are None where they are not defined: one pair has a difference and no spread.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def holds_zero(self) -> bool | None:
        """Whether zero lies within the limits (limits included); None without limits."""
        return None if self.low is None or self.high is None else self.low <= 0.0 <= self.high


def paired_t(arm: ArrayLike, reference: ArrayLike) -> Interval:
    """Student's paired t interval of `mean(arm - reference)` over n seeds: mean +- t(n-1) * sd / sqrt(n).

    arm, reference: (n,), element i of both from the same seed. Equal differences have no spread: the limits coincide,
    and p is 1 where they are zero and 0 elsewhere, the limits of the t test. Raises ValueError on unequal lengths or none.
    """
    differences = np.subtract(*_paired(arm, reference))
    mean = float(differences.mean())
    if len(differences) == 1:
        return Interval(mean)
    # Differences of floats that agree to the last bits have no spread that a t test could use.
    if float(np.ptp(differences)) <= 8 * np.finfo(np.float64).eps * max(1.0, abs(mean)):
        return Interval(mean, mean, mean, 1.0 if mean == 0.0 else 0.0)
    from scipy import stats  # where it is missing, a machine can still make the runs

    test = stats.ttest_1samp(differences, 0.0)
    limits = test.confidence_interval(CONFIDENCE)
    return Interval(mean, float(limits.low), float(limits.high), float(test.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number (Holm 1979, step-down); the family-wise error rate holds under any dependence.

    Sorted ascending, p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)). None stays None and is not counted.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def crossed(differences: ArrayLike, targets: ArrayLike) -> Interval:
    """Interval of the difference in loss, nats per target, that covers other documents and, from two seeds on, other seeds.

    differences: (S, N), nats of the arm less nats of the reference, each summed over a document; row s is of seed s.
    targets: (N,), how many targets each document has. The estimate is sum(differences) / (S sum(targets)), the mean over seeds
    of the difference in loss. Its variance is that of two-way clustering (Cameron, Gelbach & Miller 2011, JBES 29(2), 2.3):
    V_seeds + V_documents - V_both, from the residuals e_sd = (d_sd - estimate t_d) / (S sum(t)), each term with g / (g - 1)
    for its g clusters; never below the larger of the first two. Limits: estimate +- t(min(S, N) - 1) sqrt(V). So it holds
    its estimate, and `paired_t` of the same seeds wherever S <= N. With one seed it is V_documents alone, with t(N - 1): the
    ratio estimator of sampling theory. No p-value. One document: no limits. Raises ValueError on shapes that do not fit.
    """
    values, counts = np.asarray(differences, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if values.ndim != 2 or not values.size or counts.shape != values.shape[1:] or counts.min() < 0 or counts.sum() == 0:
        raise ValueError(f"targets of shape {counts.shape} do not count the targets of documents of shape {values.shape}")
    values, counts = values[:, counts > 0], counts[counts > 0]
    seeds, documents = values.shape
    mean = float(values.sum() / (seeds * counts.sum()))
    if documents < 2:
        return Interval(mean)
    residuals = (values - mean * counts) / (seeds * counts.sum())
    variance = _between(residuals.sum(axis=0))
    if seeds > 1:
        over_seeds = _between(residuals.sum(axis=1))
        variance = max(over_seeds, variance, over_seeds + variance - _between(residuals.ravel()))
    from scipy import stats

    clusters = min(seeds, documents) if seeds > 1 else documents
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, clusters - 1)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def _between(sums: NDArray[np.float64]) -> float:
    """The variance of the total of g independent clusters' residual sums: g / (g - 1) times the sum of their squares."""
    return len(sums) / (len(sums) - 1) * float((sums**2).sum())


def reached(x: ArrayLike, losses: ArrayLike, goal: float) -> float | None:
    """The first x (tokens, seconds) at which a loss curve is at or below `goal`, linear between points; None if never."""
    at, loss = _paired(x, losses)
    below = np.flatnonzero(loss <= goal)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0:
        return float(at[0])
    share = (loss[i - 1] - goal) / (loss[i - 1] - loss[i])
    return float(at[i - 1] + share * (at[i] - at[i - 1]))


def spread(values: ArrayLike) -> float | None:
    """Sample standard deviation (n - 1); None for one value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1)) if len(array) > 1 else None


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows, as a diverged run's does."""
    return math.exp(loss) if loss < _OVERFLOWS else math.inf


def percent(difference: float) -> float:
    """A difference in loss (nats) as a change of perplexity in percent: 100 (exp(d) - 1); infinite where that overflows."""
    return 100.0 * math.expm1(difference) if difference < _OVERFLOWS else math.inf


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"pairs need two equally long rows of numbers, not shapes {first.shape} and {second.shape}")
    return first, second
