"""Paired differences with intervals, and p-values that know how many of them there are.

Arrays in, numbers out: nothing here knows what a run is. A difference is `arm - reference`, so that a negative one
means a lower loss. Where an interval cannot be had (one seed, one document) the answer is None, never a guess.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
_OVERFLOWS = 700.0  # nats; exp of more is infinite in float64
RESAMPLES = 10_000  # Monte Carlo error of a 2.5 % tail: sqrt(0.025 * 0.975 / RESAMPLES), 6 % of it


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


def paired_bootstrap(arm_nats: ArrayLike, reference_nats: ArrayLike, targets: ArrayLike, seed: int = 0) -> Interval:
    """Bootstrap interval of the difference in loss, nats per target, of two models on the same documents.

    (n,) each: summed negative log likelihood of each document under both models, and its number of targets. Documents
    are resampled in pairs; the statistic is the ratio sum(arm - reference) / sum(targets). BCa (Efron 1987) by
    scipy.stats.bootstrap. It speaks of other documents, not of other seeds. No p-value. Raises ValueError on unequal
    lengths, no documents or no targets.
    """
    arm, reference = _paired(arm_nats, reference_nats)
    counts = np.asarray(targets, dtype=np.float64)
    if counts.shape != arm.shape or counts.min() < 0 or counts.sum() == 0:
        raise ValueError(f"targets of shape {counts.shape} do not count the targets of {len(arm)} documents")
    differences = arm - reference
    mean = float(differences.sum() / counts.sum())
    if np.count_nonzero(counts) < 2:
        return Interval(mean)
    if np.allclose(differences, mean * counts, rtol=1e-12, atol=1e-12):
        return Interval(mean, mean, mean)  # BCa divides by a spread that is not there
    from scipy import stats

    result = stats.bootstrap(
        (differences, counts),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // len(arm)),  # 64 MB of float64 at a time, whatever the number of documents
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


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


def _ratio(differences: NDArray[np.float64], counts: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    result: NDArray[np.float64] = differences.sum(axis=axis) / np.maximum(counts.sum(axis=axis), 1.0)
    return result
