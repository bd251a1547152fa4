"""A law of the loss in the number of parameters N and of training tokens D, fitted to several arms at once.

    L_arm(N, D) = E + A_arm / N^a + B_arm / D^b

is the parametric law of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3), in nats a token. Three kinds of it:

    shared      E, a and b are those of all arms: every difference goes to zero as N and D grow, by assumption
    own limit   a and b are those of all arms, and each has its E: a difference may stay
    apart       each arm has all five

As in that paper the residuals are those of log L under a Huber loss. Arrays in, numbers out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
KINDS = ("shared", "own limit", "apart")
HUBER = 1e-3  # residuals of log L beyond it count linearly: Hoffmann et al. 2022, appendix D.2
LEAST = 3  # sizes, and lengths: E, A and a cannot be told apart from fewer sizes, nor E, B and b from fewer lengths
_STARTS = ((0.2, 0.5), (0.2, 0.5), (0.5, 0.9))  # a, b, and E as a share of the lowest loss
_NAMES = ("E", "A", "B", "a", "b")
_LOWEST, _HIGHEST = 0.01, 3.0  # of the exponents


@dataclass(frozen=True)
class Law:
    """Fitted coefficients; one of each an arm, equal where they are shared."""

    E: Array
    A: Array
    B: Array
    a: Array
    b: Array
    error: float
    """Root mean square of the residuals of log L: about the share of the loss by which the law misses."""

    def loss(self, arm: int, parameters: float | Array, tokens: float | Array) -> Array:
        """L_arm(N, D) in nats a token."""
        size, length = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        loss: Array = self.E[arm] + self.A[arm] * size ** -self.a[arm] + self.B[arm] * length ** -self.b[arm]
        return loss


def fit(
    arms: Sequence[int], parameters: Array, tokens: Array, losses: Array, kind: str = "shared", start: Law | None = None
) -> Law:
    """The law through points: arm (from 0 on, each with some), N, D and loss of each, all of one length.

    `start`: a law to begin from instead of a grid. Raises ValueError where there are too few sizes or lengths, or where the
    points are fewer than the coefficients.
    """
    index, count = np.asarray(arms, np.int64), max(arms) + 1
    for what, values in (("sizes", parameters), ("lengths", tokens)):
        if len(np.unique(values)) < LEAST:
            raise ValueError(f"{len(np.unique(values))} {what} are too few for a law of the loss; it needs {LEAST}")
    if kind == "apart":
        laws = [
            fit([0] * int(mine.sum()), parameters[mine], tokens[mine], losses[mine], "shared", start and _only(start, arm))
            for arm, mine in ((arm, index == arm) for arm in range(count))
        ]
        error = float(np.sqrt(np.average([law.error**2 for law in laws], weights=np.bincount(index))))
        E, A, B, a, b = (np.concatenate([getattr(law, name) for law in laws]) for name in _NAMES)
        return Law(E, A, B, a, b, error)
    limits = count if kind == "own limit" else 1  # numbers of E
    if len(losses) < (coefficients := 2 + limits + 2 * count):
        raise ValueError(f"{len(losses)} points are too few for the {coefficients} coefficients of {count} arms")
    # Coefficients of N and D in units of their geometric means, so that all of them are of one order.
    units = np.exp([np.log(parameters).mean(), np.log(tokens).mean()])
    sizes, lengths = parameters / units[0], tokens / units[1]
    grid = product(*_STARTS)
    starts = [_packed(start, units, count, limits)] if start else [_first(losses, count, limits, *where) for where in grid]
    found = min((_descend(index, sizes, lengths, losses, guess, limits) for guess in starts), key=lambda result: result[1])
    (a, b), E = np.exp(found[0][:2]), np.exp(found[0][2 : 2 + limits])
    A, B = np.exp(found[0][2 + limits :]).reshape(2, count) * np.array([[units[0] ** a], [units[1] ** b]])
    law = Law(np.broadcast_to(E, count), A, B, np.full(count, a), np.full(count, b), 0.0)
    predicted = np.array([float(law.loss(arm, n, d)) for arm, n, d in zip(index, parameters, tokens, strict=True)])
    return Law(law.E, A, B, law.a, law.b, float(np.sqrt(np.mean(np.log(predicted / losses) ** 2))))


def _only(law: Law, arm: int) -> Law:
    """The law of one arm."""
    E, A, B, a, b = (getattr(law, name)[arm : arm + 1] for name in _NAMES)
    return Law(E, A, B, a, b, law.error)


def _packed(law: Law, units: Array, count: int, limits: int) -> Array:
    """Logarithms of a, b, E (one or `limits`), all A and all B, in `units`."""
    A, B = law.A[:count] * units[0] ** -law.a[:count], law.B[:count] * units[1] ** -law.b[:count]
    found: Array = np.log(np.concatenate([[law.a[0], law.b[0]], law.E[:limits], A, B]))
    return found


def _first(losses: Array, count: int, limits: int, a: float, b: float, share: float) -> Array:
    rest = np.full(2 * count, (losses.mean() - share * losses.min()) / 2)
    found: Array = np.log(np.concatenate([[a, b], np.full(limits, share * losses.min()), rest]))
    return found


def _descend(
    index: NDArray[np.int64], sizes: Array, lengths: Array, losses: Array, start: Array, limits: int
) -> tuple[Array, float]:
    """(logarithms of the coefficients, cost) of the minimum that `start` leads to."""
    from scipy.optimize import least_squares

    first, points = 2 + limits, np.arange(len(losses))  # first: place of the first A
    count = (len(start) - first) // 2
    own = index if limits > 1 else np.zeros_like(index)  # which E is a point's

    def parts(values: Array) -> tuple[Array, Array, Array, Array, Array]:
        (a, b), E = np.exp(values[:2]), np.exp(values[2:first])[own]
        of_size = np.exp(values[first : first + count])[index] * sizes**-a
        of_length = np.exp(values[first + count :])[index] * lengths**-b
        return E, of_size, of_length, -a * np.log(sizes), -b * np.log(lengths)

    def residuals(values: Array) -> Array:
        difference: Array = np.log(sum(parts(values)[:3])) - np.log(losses)
        return difference

    def slopes(values: Array) -> Array:
        E, of_size, of_length, by_a, by_b = parts(values)
        found = np.zeros((len(losses), len(values)))
        found[:, 0], found[:, 1], found[points, 2 + own] = of_size * by_a, of_length * by_b, E
        found[points, first + index], found[points, first + count + index] = of_size, of_length
        return found / (E + of_size + of_length)[:, None]

    exponents = np.log([_LOWEST, _HIGHEST])
    low, high = np.full(len(start), -60.0), np.full(len(start), 60.0)
    low[:2], high[:2] = exponents
    high[2:first] = np.log(losses.min())  # the loss of an endless run of an endless model lies below all others
    inside = np.clip(start, low + 1e-6, high - 1e-6)
    result = least_squares(
        residuals, inside, slopes, bounds=(low, high), loss="huber", f_scale=HUBER, x_scale=1.0, max_nfev=400, ftol=1e-10
    )
    return result.x, float(result.cost)
