"""Tropical rational: G(z) = max_k(m_k z + a_k) - max_k(m'_k z + a'_k): any continuous piecewise-linear shape.

Khalfaoui-Hassani and Kesselheim, Polynomial, trigonometric, and tropical activations, arXiv 2502.01247.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.engine import Columns, Kernel, Pointwise, Total
from activations.moments import Moments, piecewise_linear, unit_gain
from activations.target import Target, Weight
from activations.tropical import active, by_piece, crossings, intercepts, quantiles, thresholds

PAPER_SEED = 0
LARGEST_INPUT = 1e30  # two infinite maxima would make NaN


class TropicalRational(Learnable):
    """`slopes` m, `intercepts` a, `slopes_den` m', `intercepts_den` a': (n+1,) each, or (channels, n+1).

    init=unit: m_k = k with breakpoints at the quantiles k/(n+1), m'_k = k/2 with breakpoints at (k - 1/2)/n, then scale and
    shift by the Poincare rule. init=paper: all four drawn from N(0, 1), gain uncontrolled, by a generator of its own: every
    layer starts alike. It grows linearly, so it overflows in float16 only where x nearly does.
    """

    options: ClassVar = {"degree": Option(6, range(1, 33)), **LEARNABLE_OPTIONS}
    degrees = ("degree",)
    parameter_names = ("slopes", "intercepts", "slopes_den", "intercepts_den")
    default_weight = Weight("uniform", 6.0)
    slopes: Tensor
    intercepts: Tensor
    slopes_den: Tensor
    intercepts_den: Tensor

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        m, a, m_den, a_den = (values[name] for name in self.parameter_names)
        z = z.clamp(-LARGEST_INPUT, LARGEST_INPUT)
        top, under = (
            torch.stack([slopes[..., k] * z + intercepts[..., k] for k in range(slopes.shape[-1])]).max(dim=0).values
            for slopes, intercepts in ((m, a), (m_den, a_den))
        )
        return top - under

    def initial(self, init: str) -> Values:
        n = self.choices["degree"]
        if init == "paper":
            generator = torch.Generator().manual_seed(PAPER_SEED)
            shape = (n + 1,) if self.rows() == 1 else (self.rows(), n + 1)
            return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name in self.parameter_names}
        k = torch.arange(n + 1, dtype=torch.float64)
        h = self._values(k, intercepts(k, quantiles(n)), k / 2, intercepts(k / 2, quantiles(n, offset=0.5)))
        scale, shift = unit_gain(self.moments(h, 1.0))
        h = {name: scale * value for name, value in h.items()}
        return h | {"intercepts": h["intercepts"] + shift}

    def fitted(self, target: Target) -> Values:
        """Least squares over hinges, by value: n knots bend up and go to the first maximum, n bend down and go to the second.

        The first knots share |g''|^(2/5) equally, the asymptotically best of a piecewise-linear function. Variable projection
        moves them. Where some then bend the wrong way, least squares under the signs is what counts. By value alone: the slope
        of a step function meets the target's only on average.
        """
        n = self.choices["degree"]
        w = target.weight.sqrt()
        right = w * target.value
        reach = 1.1 * target.z.abs().max()
        one = torch.ones_like(target.z)[:, None]
        signs = torch.cat([torch.zeros(2), torch.ones(n), -torch.ones(n)]).double()

        def design(knots: Tensor) -> Tensor:
            return w[:, None] * torch.cat([one, target.z[:, None], (target.z[:, None] - knots).clamp(min=0)], dim=1)

        def signed(knots: Tensor) -> solve.Projection:
            matrix = design(knots)
            c = solve.scaled_lstsq(matrix, right)
            if (signs * c < 0).any():
                c = solve.signed_lstsq(matrix, right, signs)
            return solve.Projection(float((matrix @ c - right).square().sum()), knots, c)

        def moved(found: solve.Projection, kept: Tensor) -> solve.Projection:
            """With the knots moved that bend and are `kept`, the others left; not worse than `found`."""
            moving = kept & (found.c[2:] != 0)
            if not moving.any():
                return found
            free = solve.variable_projection(design, right, found.theta[moving], steps).theta.clamp(-reach, reach)
            knots = found.theta.masked_scatter(moving, free)
            order = solve.project(design, right, free).c[2:].argsort(descending=True)
            by_bend = knots.masked_scatter(moving, free[order])  # a knot may change sides
            return min(found, signed(knots), signed(by_bend), key=lambda one: one.misfit)

        steps = max(20, 240 // n)
        start = signed(torch.cat([_knots(target, n, sign) for sign in (1, -1)]))
        best = moved(start, signs[2:] != 0)
        if best is start:  # all together they bend the wrong way: a convex target has no use for half of them
            best = min((moved(start, signs[2:] == sign) for sign in (1, -1)), key=lambda one: one.misfit)
        c, (up, down) = best.c, best.theta.split(n)
        up, rising = _sorted(up, c[2 : 2 + n])
        down, falling = _sorted(down, -c[2 + n :])
        slopes = torch.cat([c[1:2], c[1] + rising.cumsum(0)])
        slopes_den = torch.cat([torch.zeros(1).double(), falling.cumsum(0)])
        return self._values(slopes, intercepts(slopes, up, float(c[0])), slopes_den, intercepts(slopes_den, down))

    def kinks(self, values: Values) -> Tensor:
        m, a, m_den, a_den = (values[name] for name in self.parameter_names)
        return torch.cat([crossings(m, a), crossings(m_den, a_den)], dim=-1)

    def moments(self, values: Values, std: float) -> Moments:
        m, a, m_den, a_den = (values[name] for name in self.parameter_names)

        def line(z: Tensor) -> tuple[Tensor, Tensor]:
            slope, intercept = active(m, a, z)
            slope_den, intercept_den = active(m_den, a_den, z)
            return slope - slope_den, intercept - intercept_den

        return piecewise_linear(self.kinks(values), line, std)

    def fast_path(self) -> Pointwise:
        s = self.input_std
        return Pointwise(KERNEL, self.slopes, self.intercepts * s, self.slopes_den, self.intercepts_den * s)

    def _values(self, *vectors: Tensor) -> Values:
        return dict(zip(self.parameter_names, vectors, strict=True))


def _knots(target: Target, n: int, sign: int) -> Tensor:
    """(n,) knots where sign * g'' > 0, each with an equal share of (weight density * g''^2)^(1/5); inside the range."""
    z = torch.linspace(-target.radius, target.radius, 2049, dtype=torch.float64)
    order = target.z.argsort()
    at = torch.searchsorted(target.z[order], z).clamp(1, len(order) - 1)
    left, right = order[at - 1], order[at]
    bend = sign * (target.slope[right] - target.slope[left]) / (target.z[right] - target.z[left])
    density = (bend.clamp(min=0) ** 2) ** 0.2
    if target.law.law == "normal":
        density = density * torch.exp(-(z / target.slope_scale).square() / 10)
    share = (density + 1e-6 * density.max().clamp(min=1e-12)).cumsum(0)
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n * share[-1]
    return z[torch.searchsorted(share, levels)]


def _sorted(knots: Tensor, bends: Tensor) -> tuple[Tensor, Tensor]:
    order = knots.argsort()
    return knots[order], bends[order]


# The fast path, as in tropical.py.


def _prepare(*coefficients: Tensor) -> tuple[Tensor, ...]:
    """The coefficients, then for each of the two maxima its slopes in ascending order and its thresholds."""
    m, b, m_den, b_den = coefficients
    ascending, order = m.sort(dim=1, stable=True)
    ascending_den, order_den = m_den.sort(dim=1, stable=True)
    steps, steps_den = thresholds(ascending, b.gather(1, order)), thresholds(ascending_den, b_den.gather(1, order_den))
    return *coefficients, ascending, steps, ascending_den, steps_den


def _value(z: Tensor, out: Tensor | None, *columns: Columns) -> Tensor:
    z = z.clamp(-LARGEST_INPUT, LARGEST_INPUT)
    return _maximum(z, columns[0], columns[1]).sub_(_maximum(z, columns[2], columns[3]))


def _maximum(z: Tensor, m: Columns, b: Columns) -> Tensor:
    y = torch.mul(z, m[0]).add_(b[0])
    for m_k, b_k in zip(m[1:], b[1:], strict=True):
        torch.maximum(y, torch.mul(z, m_k).add_(b_k), out=y)
    return y


def _gradients(z: Tensor, g: Tensor, total: Total, out: Tensor | None, *columns: Columns) -> tuple[Tensor, list[Tensor]]:
    """Sums: g x and g over x > T_k, k = 0..n, of the first maximum, then of the second."""
    gz = g * z
    slope, sums = torch.zeros_like(z), []
    for sign, m, steps in ((1, columns[4], columns[5]), (-1, columns[6], columns[7])):
        slope.add_(m[0], alpha=sign)
        of_gz, of_g = [total(gz)], [total(g)]
        for step, gain in zip(steps, [sign * (b - a) for a, b in pairwise(m)], strict=True):
            above = torch.empty_like(z).copy_(z).gt_(step)
            slope.addcmul_(above, gain)
            of_gz.append(total(gz, above))
            of_g.append(total(g, above))
        sums += of_gz + of_g
    return slope.mul_(g), sums


def _collect(sums: Tensor, *coefficients: Tensor) -> tuple[Tensor, ...]:
    m, _, m_den, _ = coefficients
    parts = sums.split([c.shape[1] for c in coefficients], dim=1)
    orders = (order for slopes in (m, m_den) for order in [slopes.sort(dim=1, stable=True).indices] * 2)
    shares = [torch.empty_like(part).scatter_(1, order, by_piece(part)) for part, order in zip(parts, orders, strict=True)]
    return *shares[:2], *[-share for share in shares[2:]]


KERNEL = Kernel(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect)
