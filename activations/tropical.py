"""Tropical (max-plus) polynomial: G(z) = S max_{k=0..n}(k z + a_k), convex and piecewise linear.

Khalfaoui-Hassani and Kesselheim, Polynomial, trigonometric, and tropical activations, arXiv 2502.01247; S is ours: without it
the slopes, and with them the gain, could not be scaled.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.engine import Columns, Kernel, Pointwise, Total
from activations.moments import Moments, piecewise_linear, unit_gain
from activations.target import Target, Weight


class Tropical(Learnable):
    """`scale` S: (1,), `intercepts` a: (n+1,), or (channels, ...). A negative S makes it concave.

    init=unit: breakpoints at the quantiles k/(n+1) of the inputs, so that every piece is alive, S and the common shift by the
    Poincare rule; n = 1 is sqrt(2) ReLU. init=paper: S = sqrt(2)/n, frozen, all a_k = 1: sqrt(2) ReLU(x) + sqrt(2)/n, whose n -
    1 middle pieces touch at one point and get no gradient. Slopes are at most |S| n, so it overflows in float16 only where x
    would.
    """

    options: ClassVar = {"degree": Option(6, range(1, 33)), **LEARNABLE_OPTIONS}
    degrees = ("degree",)
    parameter_names = ("scale", "intercepts")
    default_weight = Weight("uniform", 3.0)  # its tails are lines: only the bend must be sampled
    scale: Tensor
    intercepts: Tensor

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        a = values["intercepts"]
        # Not 0 * z, NaN where z is infinite; max, not amax, which would share the gradient out among pieces that tie.
        pieces = [torch.zeros_like(z) + a[..., 0], *(k * z + a[..., k] for k in range(1, a.shape[-1]))]
        return values["scale"][..., 0] * torch.stack(pieces).max(dim=0).values

    def is_trained(self, name: str) -> bool:
        return super().is_trained(name) and not (name == "scale" and self.choices["init"] == "paper")

    def initial(self, init: str) -> Values:
        n = self.choices["degree"]
        if init == "paper":
            return {"scale": torch.tensor([math.sqrt(2) / n]).double(), "intercepts": torch.ones(n + 1).double()}
        h = {"scale": torch.ones(1).double(), "intercepts": intercepts(torch.arange(n + 1).double(), quantiles(n))}
        scale, shift = unit_gain(self.moments(h, 1.0))
        return {"scale": scale[None], "intercepts": h["intercepts"] + shift / scale}

    def fitted(self, target: Target) -> Values:
        """Variable projection over the breakpoints, shift and S linear, from where the target's slope passes S (k - 1/2); by
        value.

        Only convex (S > 0) and concave (S < 0) shapes can be reached: both are tried.
        """
        n = self.choices["degree"]
        w = target.weight.sqrt()

        def design(t: Tensor) -> Tensor:
            hinges = (target.z[:, None] - t).clamp(min=0).sum(1)
            return w[:, None] * torch.stack([torch.ones_like(hinges), hinges], dim=1)

        starts = [start for sign in (1, -1) for start in _breakpoints(target, n, sign)]
        best = solve.best_projection(design, w * target.value, starts, steps=80)
        reach = 1.1 * target.z.abs().max()  # beyond it a breakpoint is a line's worth of shift, wherever it lies
        c, scale = solve.project(design, w * target.value, best.theta.clamp(-reach, reach)).c
        if not scale:  # a constant target
            return {"scale": scale[None], "intercepts": torch.full((n + 1,), float(c)).double()}
        breakpoints = best.theta.clamp(-reach, reach).sort().values
        return {"scale": scale[None], "intercepts": intercepts(torch.arange(n + 1).double(), breakpoints) + c / scale}

    def kinks(self, values: Values) -> Tensor:
        slopes = torch.arange(values["intercepts"].shape[-1], dtype=torch.float64)
        return crossings(slopes, values["intercepts"])

    def moments(self, values: Values, std: float) -> Moments:
        a, scale = values["intercepts"], values["scale"]
        slopes = torch.arange(a.shape[-1], dtype=torch.float64).expand_as(a)

        def line(z: Tensor) -> tuple[Tensor, Tensor]:
            slope, intercept = active(slopes, a, z)
            return scale * slope, scale * intercept

        return piecewise_linear(self.kinks(values), line, std)

    def fast_path(self) -> Pointwise:
        return Pointwise(KERNEL, self.scale, self.intercepts * self.input_std)


def quantiles(n: int, offset: float = 0.0) -> Tensor:
    """(n,) breakpoints at the standard normal's quantiles (k - offset) / (n + 1 - 2 offset), k = 1..n."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    t: Tensor = torch.special.ndtri((k - offset) / (n + 1 - 2 * offset))
    return t


def intercepts(slopes: Tensor, breakpoints: Tensor, start: float = 0.0) -> Tensor:
    """a (n+1,) for which pieces k-1 and k of slopes (n+1,) meet at breakpoints (n,): a_k = a_{k-1} - (m_k - m_{k-1}) t_k."""
    drops = slopes.diff() * breakpoints
    return torch.cat([torch.zeros(1, dtype=slopes.dtype), -drops.cumsum(0)]) + start


def active(slopes: Tensor, a: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the largest piece m_k z + a_k at points z: (..., k) and (..., points) to (..., points) twice."""
    top = (slopes[..., None, :] * z[..., :, None] + a[..., None, :]).argmax(dim=-1)
    return slopes.gather(-1, top), a.gather(-1, top)


def crossings(slopes: Tensor, a: Tensor) -> Tensor:
    """Where any two pieces meet, (..., k (k-1) / 2), infinite for parallel ones: among these are all breakpoints."""
    i, j = torch.triu_indices(a.shape[-1], a.shape[-1], offset=1)
    met = (a[..., i] - a[..., j]) / (slopes[..., j] - slopes[..., i])
    return torch.where(met.isfinite(), met, torch.inf)


def _breakpoints(target: Target, n: int, sign: int) -> list[Tensor]:
    """Starts (n,): where the running maximum of sign * g' passes the middles of n equal steps up to its end."""
    rising = (sign * target.slope).cummax(0).values
    starts = []
    for low, margin in ((0.0, 1.05), (float(rising[0]), 1.0)):
        rise = max(float(rising[-1]) - low, 1e-3) * margin / n
        levels = low + rise * (torch.arange(n, dtype=torch.float64) + 0.5)
        t = target.z[torch.searchsorted(rising, levels).clamp(max=len(target.z) - 1)]
        starts.append(t + 1e-2 * target.radius / n * torch.arange(n))  # apart
    return starts


# The fast path.
#
# The pieces of a maximum of lines take over in the order of their slopes. So a threshold for each says which is the largest:
# derivatives need one comparison a piece, not a chain of maxima. At a tie the piece of lowest slope gets the gradient.


def thresholds(slopes: Tensor, intercepts: Tensor) -> Tensor:
    """T (rows, n) of n + 1 lines (rows, n + 1), slopes ascending: for x > T_k, and only there, the largest line is among k..n.

    T_k = min_{j >= k} max_{i < k} of where line j overtakes line i. T ascends; equal neighbours bound a piece that is never
    the largest.
    """
    rise = slopes.unsqueeze(1) - slopes.unsqueeze(2)  # (rows, i, j): m_j - m_i
    lead = intercepts.unsqueeze(2) - intercepts.unsqueeze(1)  # b_i - b_j
    overtakes = torch.where(rise > 0, lead / rise, torch.where(lead < 0, -torch.inf, torch.inf))
    index = torch.arange(slopes.shape[-1], device=slopes.device)
    k = index[1:].view(-1, 1, 1)
    last = torch.where(index.view(-1, 1) < k, overtakes.unsqueeze(1), -torch.inf).amax(2)  # (rows, k, j)
    return torch.where(index >= k.squeeze(-1), last, torch.inf).amin(2)


def by_piece(sums: Tensor) -> Tensor:
    """Sums over x > T_k for k = 0..n (T_0 = -inf) into sums over where piece k is the largest."""
    return sums - torch.cat([sums[:, 1:], torch.zeros_like(sums[:, :1])], dim=1)


def _prepare(scale: Tensor, intercepts: Tensor) -> tuple[Tensor, ...]:
    k = torch.arange(intercepts.shape[-1], dtype=intercepts.dtype, device=intercepts.device)
    return scale, intercepts, thresholds(k.expand_as(intercepts), intercepts)


def _value(z: Tensor, out: Tensor | None, scale: Columns, b: Columns, steps: Columns) -> Tensor:
    """Horner's rule in the max-plus semiring: max(b_0, z + max(b_1, z + ...))."""
    y = torch.add(z, b[-1], out=out)
    for b_k in reversed(b[1:-1]):
        torch.maximum(y, b_k, out=y).add_(z)
    return torch.maximum(y, b[0], out=y).mul_(scale[0])


def _gradients(
    z: Tensor, g: Tensor, total: Total, out: Tensor | None, scale: Columns, b: Columns, steps: Columns
) -> tuple[Tensor, list[Tensor]]:
    """Sums: g times the piece's number times x, then g over x > T_k, k = 0..n."""
    piece, sums = torch.zeros_like(z), [total(g)]
    for step in steps:
        above = torch.empty_like(z).copy_(z).gt_(step)
        piece.add_(above)
        sums.append(total(g, above))
    dz = torch.mul(piece, g, out=out)
    return dz.mul_(scale[0]), [total(piece.mul_(g), z), *sums]


def _collect(sums: Tensor, scale: Tensor, intercepts: Tensor) -> tuple[Tensor, Tensor]:
    shares = by_piece(sums[:, 1:])
    return sums[:, :1] + (intercepts * shares).sum(1, keepdim=True), scale * shares


KERNEL = Kernel(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect)
