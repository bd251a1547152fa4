"""Linear spline: G(z) is piecewise linear between K evenly spaced knots, and linear outside them.

With w = (z - t_1) / h the place of z in units of the spacing h, and c clamped to [0, 1] a piece's share of its rise,

    G(z) = v_1 + sum_{i=1..K-1} (v_{i+1} - v_i) c(w - i + 1) + m_1 min(z - t_1, 0) + m_2 max(z - t_K, 0).

Heights at fixed knots are the local basis of learned splines: Bohra et al. 2020, Learning activation functions in deep
(spline) neural networks, doi 10.1109/OJSP.2020.3039379. Kolmogorov-Arnold networks learn such a shape on every edge
(arXiv 2404.19756). Knots that move freely are `tropical_rational`'s.
"""

from typing import ClassVar

import torch
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.engine import Columns, Kernel, Pointwise, Total
from activations.moments import Moments, piecewise_linear, unit_gain
from activations.target import TARGETS, Target, Weight, gelu

REACH = 2.5  # the outermost knots, in standard deviations of the inputs: 1.2 % of them lie outside and teach the outer slopes
LARGEST_INPUT = 1e30  # two infinite terms would make NaN
STRAIGHT = 1e-4  # price of a bend in a fit: pieces that no input reaches continue the line beside them


class Spline(Learnable):
    """`heights` v = G(t_k): (K,), `slopes` m outside the knots: (2,), or (channels, ...). t_k: evenly from -2.5 to 2.5.

    init=unit: the spline that is nearest to GELU under N(0, 1), then scale and shift by the Poincare rule. There is no
    published initialisation (init=paper): learned splines start at ReLU, its absolute value, or another function's shape.
    It grows linearly, so it overflows in float16 only where x nearly does.
    """

    options: ClassVar = {
        "knots": Option(12, range(2, 33)),
        **LEARNABLE_OPTIONS,
        "init": Option("unit", ("unit", *(f"fit-{name}" for name in TARGETS))),
    }
    degrees = ("knots",)
    parameter_names = ("heights", "slopes")
    default_weight = Weight("normal", 1.5)
    heights: Tensor
    slopes: Tensor
    place: Tensor

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        v, m = values["heights"], values["slopes"]
        pieces = v.shape[-1] - 1
        spacing = 2 * REACH / pieces
        w = (z.clamp(-LARGEST_INPUT, LARGEST_INPUT) + REACH) / spacing
        # At a knot the slope is that of the piece on the left: relu's is 0 there, and a clamp's at its upper limit is 1.
        beyond = [torch.relu(w.clamp(max=pieces) - i) for i in range(pieces + 1)]
        y = v[..., 0] + m[..., 0] * spacing * w.clamp(max=0)
        for i in range(pieces):
            y = y + (v[..., i + 1] - v[..., i]) * (beyond[i] - beyond[i + 1])
        return y + m[..., 1] * spacing * torch.relu(w - pieces)

    def initial(self, init: str) -> Values:
        h = self.fitted(Target.sample(gelu, Weight("normal", 1.0)))
        scale, shift = unit_gain(self.moments(h, 1.0))
        return {"heights": scale * h["heights"] + shift, "slopes": scale * h["slopes"]}

    def fitted(self, target: Target) -> Values:
        """Linear least squares, by value: the slope of a step function meets the target's only on average."""
        count = self.choices["knots"]
        heights, slopes = torch.eye(count + 2, dtype=torch.float64).split([count, 2], dim=1)
        units = {"heights": heights, "slopes": slopes}
        basis = self.evaluate(units, target.z[:, None].expand(-1, count + 2))
        bends = STRAIGHT * self._pieces(units).diff(dim=-1).T
        w = target.weight.sqrt()
        matrix, right = torch.cat([w[:, None] * basis, bends]), torch.cat([w * target.value, torch.zeros(count).double()])
        found = solve.scaled_lstsq(matrix, right)
        return {"heights": found[:count], "slopes": found[count:]}

    def kinks(self, values: Values) -> Tensor:
        return torch.linspace(-REACH, REACH, self.choices["knots"], dtype=torch.float64)

    def moments(self, values: Values, std: float) -> Moments:
        v, t = values["heights"], self.kinks(values)
        slopes = self._pieces(values)
        left = (v - t * slopes[..., 1:], v[..., :1] - t[0] * slopes[..., :1])  # each piece passes a knot, the first one t_1
        intercepts = torch.cat([left[1], left[0]], dim=-1)
        return piecewise_linear(t.expand(*v.shape), lambda z: (slopes, intercepts), std)

    def constants(self) -> Values:
        pieces = self.choices["knots"] - 1
        return {"place": torch.tensor([pieces / 2, pieces / (2 * REACH)], dtype=torch.float64)}

    def fast_path(self) -> Pointwise:
        """In w = place_1 x / s + place_0: rises instead of heights, outer slopes a spacing."""
        v, s = self.heights * self.input_std, self.input_std
        outer = self.slopes * (s / self.place[1])
        return Pointwise(KERNEL, v[..., :1], v.diff(dim=-1), outer, torch.stack([self.place[0], self.place[1] / s]))

    def _pieces(self, values: Values) -> Tensor:
        """The slopes of all pieces from left to right, (..., K+1)."""
        v, m = values["heights"], values["slopes"]
        inner = v.diff(dim=-1) * ((v.shape[-1] - 1) / (2 * REACH))
        return torch.cat([m[..., :1], inner, m[..., 1:]], dim=-1)


# The fast path: base + sum_i rises_i clamp(w - i, 0, 1) + outer_0 min(w, 0) + outer_1 max(w - pieces, 0) for
# w = place_1 x + place_0.


def _prepare(base: Tensor, rises: Tensor, outer: Tensor, place: Tensor) -> tuple[Tensor, ...]:
    """Also the bends, by how much the slope in w changes at each knot."""
    slopes = torch.cat([outer[:, :1], rises, outer[:, 1:]], dim=1)
    return base, rises, outer, place, slopes.diff(dim=1)


def _place(z: Tensor, place: Columns, bound: float) -> Tensor:
    return torch.addcmul(place[0], z.clamp(-bound, bound), place[1])


def _value(
    z: Tensor,
    out: Tensor | None,
    base: Columns,
    rises: Columns,
    outer: Columns,
    place: Columns,
    bends: object,
) -> Tensor:
    """One clamp a piece: sums in a fixed order on any device. A gather needs scattered sums; their times are in LOG.md."""
    w = _place(z, place, LARGEST_INPUT)
    y = torch.clamp(w, max=0, out=out).mul_(outer[0]).add_(base[0])
    for i, rise in enumerate(rises):
        y.addcmul_(rise, (w - i).clamp_(0, 1))
    return y.addcmul_(outer[1], (w - len(rises)).clamp_(min=0))


def _gradients(
    z: Tensor,
    g: Tensor,
    total: Total,
    out: Tensor | None,
    base: Columns,
    rises: Columns,
    outer: Columns,
    place: Columns,
    bends: Columns,
) -> tuple[Tensor, list[Tensor]]:
    """Sums: g, g min(w, 0), g c(w - i) for each piece, g max(w - K + 1, 0)."""
    # Another bound than the value's: a compiler that sees the same w in both keeps it for the backward pass.
    w = _place(z, place, 2 * LARGEST_INPUT)
    sums = [total(g), total(g, w.clamp(max=0))]
    sums += [total(g, (w - i).clamp_(0, 1)) for i in range(len(rises))]
    sums.append(total(g, (w - len(rises)).clamp_(min=0)))
    slope = torch.zeros_like(w).add_(outer[0])
    for i, bend in enumerate(bends):
        slope.addcmul_(bend, torch.empty_like(w).copy_(w).gt_(i))
    return slope.mul_(place[1]).mul_(g), sums


def _collect(sums: Tensor, base: Tensor, rises: Tensor, outer: Tensor, place: Tensor) -> tuple[Tensor | None, ...]:
    return sums[:, :1], sums[:, 2:-1], torch.cat([sums[:, 1:2], sums[:, -1:]], dim=1), None


KERNEL = Kernel(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect)
