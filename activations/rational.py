"""Rational: G(z) = P(z) / (1 + |A(z)|), P = sum_{j=0..p} p_j z^j, A = sum_{j=1..q} q_j z^j, by groups of channels.

The safe Pade form, without poles: Molina, Schramowski and Kersting, Pade activation units, arXiv 1907.06732; in groups: Yang
and Wang, Kolmogorov-Arnold transformer (KAT), arXiv 2409.10594.
"""

import functools
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.engine import Columns, Kernel, Pointwise, Total
from activations.moments import unit_gain
from activations.polynomial import horner, power_sums, with_slopes
from activations.target import Target, Weight, gelu


class Rational(Learnable):
    """`numerator` p_0..p_p: (groups, p+1), `denominator` q_1..q_q: (groups, q); per=channel makes every channel a group.

    init=unit: A = (1 + z^2/2)^(q//2) - 1 >= 0, P the projection of GELU under N(0, 1), then the Poincare rule, which stays
    inside the family because P -> S P + a_0 (1 + A) does as long as p >= 2 (q//2). A shorter P has no free constant there: it
    is scaled to E F^2 = s^2 and its slope gain is what it is. init=paper: fitted to SiLU, as KAT does between its two linear
    maps. Growth is of degree p - q, so with the default float16 overflows only where x nearly does.
    """

    options: ClassVar = {
        "p": Option(5, range(1, 9)),
        "q": Option(4, range(2, 9)),  # q = 1 would start at A = 0, where |A| has no gradient
        "groups": Option(8, range(1, 65537)),
        **LEARNABLE_OPTIONS,
    }
    degrees = ("p", "q")
    parameter_names = ("numerator", "denominator")
    default_weight = Weight("uniform", 6.0)
    numerator: Tensor
    denominator: Tensor
    exponents: Tensor

    def __init__(self, channels: int, input_std: float = 1.0, **options: Any) -> None:
        super().__init__(channels, input_std, **options)
        if channels % self.rows():
            divisor = next(d for d in range(self.rows(), 0, -1) if channels % d == 0)
            raise ValueError(
                f"rational: groups={self.rows()} do not divide {channels} channels; type for example groups={divisor}"
            )

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        count = max(values["numerator"].shape[-1], values["denominator"].shape[-1] + 1)
        largest = torch.finfo(z.dtype).max ** (1 / count)  # inf / inf would be NaN
        z = z.clamp(-largest, largest)
        return _power_sum(values["numerator"], z) / (1 + (z * _power_sum(values["denominator"], z)).abs())

    def rows(self) -> int:
        return self.channels if self.choices["per"] == "channel" else int(self.choices["groups"])

    @property
    def has_free_constant(self) -> bool:
        return bool(self.choices["p"] >= 2 * (self.choices["q"] // 2))

    def initial(self, init: str) -> Values:
        if init == "paper":
            return self.fitted(Target.sample(F.silu, self.default_weight))
        h = self._projected(Target.sample(gelu, Weight("normal", 1.0)))
        p, q = h["numerator"], h["denominator"]
        moments = self.moments(h, 1.0)
        if not self.has_free_constant:
            return {"numerator": p * moments.second.rsqrt(), "denominator": q}
        scale, shift = unit_gain(moments)
        one_plus_A = F.pad(q[: len(p) - 1], (1, 0), value=1.0)
        return {"numerator": scale * p + shift * F.pad(one_plus_A, (0, len(p) - len(one_plus_A))), "denominator": q}

    def fitted(self, target: Target) -> Values:
        """Variable projection over q, p linear, in value and derivative, from denominators of init=unit of several widths.

        The kinks of |A| stop descent where a better minimum lies behind them. So two more starts have come down through
        sqrt(A^2 + e^2) - e, which has none.
        """
        z, j = target.z[:, None], torch.arange(self.choices["p"] + 1)
        powers, slopes = z**j, j * z ** (j - 1).clamp(min=0)
        i = torch.arange(1, self.choices["q"] + 1)
        inner, inner_slopes = z**i, i * z ** (i - 1)
        right = solve.stack(target, powers, powers)[1]

        def design(q: Tensor, e: float = 0.0) -> Tensor:
            A = inner @ q
            size = (A.square() + e**2).sqrt() if e else A.abs()
            sign = A / size if e else A.sign()
            Q, slope_Q = (1 + size - e)[:, None], (sign * (inner_slopes @ q))[:, None]
            return solve.stack(target, powers / Q, (slopes * Q - powers * slope_Q) / Q.square())[0]

        starts = [self._denominator(target.radius / 4 * width) for width in (1, 2, 1 / 2, 1 / 4, 1 / 8)]
        for start, path in ((starts[0], (0.3, 0.03)), (starts[2], (0.1,))):
            smooth = start
            for e in path:
                smooth = solve.variable_projection(functools.partial(design, e=e), right, smooth, steps=10).theta
            starts.append(smooth)
        best = solve.best_projection(design, right, starts, steps=120, kept=3)
        return {"numerator": best.c, "denominator": best.theta}

    def kinks(self, values: Values) -> Tensor:
        """Real zeros of A: 0, and real eigenvalues of the companion matrix of A(z) / z."""
        q = values["denominator"]
        leading = torch.where(q[..., -1:].abs() < 1e-30, 1e-30, q[..., -1:])  # a vanishing one sends its roots to infinity
        companion = (
            torch.diag_embed(torch.ones(q.shape[-1] - 2, dtype=q.dtype), offset=-1).expand(*q.shape[:-1], -1, -1).clone()
        )
        companion[..., -1] = -q[..., :-1] / leading
        roots = torch.linalg.eigvals(companion)
        real = torch.where(roots.imag.abs() < 1e-6 * (1 + roots.real.abs()), roots.real, torch.inf)
        return F.pad(real, (0, 1))

    def _projected(self, target: Target) -> Values:
        """P by linear least squares over the denominator of init=unit."""
        q = self._denominator(target.radius / 4)
        units = torch.eye(self.choices["p"] + 1, dtype=torch.float64)
        return {"numerator": self.combined(target, {"numerator": units, "denominator": q}), "denominator": q}

    def _denominator(self, r: float) -> Tensor:
        """(1 + (z/r)^2 / 2)^(q//2) as q_1..q_q."""
        n = self.choices["q"]
        square = torch.ones(1, dtype=torch.float64)
        for _ in range(n // 2):
            square = F.pad(square, (0, 2)) + F.pad(square, (2, 0)) / (2 * r**2)
        return F.pad(square[1:], (0, n % 2))

    def constants(self) -> Values:
        return {"exponents": torch.arange(max(self.choices["p"], self.choices["q"]) + 1, dtype=torch.float64)}

    def fast_path(self) -> Pointwise:
        powers = self.input_std**-self.exponents
        p = self.numerator * (self.input_std * powers[: self.numerator.shape[-1]])
        return Pointwise(KERNEL, p, self.denominator * powers[1 : self.denominator.shape[-1] + 1])


def _power_sum(c: Tensor, z: Tensor) -> Tensor:
    return sum((c[..., j] * z**j for j in range(c.shape[-1])), start=torch.zeros_like(z))


# The fast path.


def _prepare(p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    """The coefficients, and those of P' and A'."""
    return p, q, with_slopes(p)[1], q * torch.arange(1, q.shape[1] + 1, dtype=q.dtype, device=q.device)


def _within(z: Tensor, p: Columns, q: Columns) -> Tensor:
    """z clamped to where no power overflows: inf / inf would be NaN."""
    largest = torch.finfo(z.dtype).max ** (1 / (max(len(p) - 1, len(q)) + 1))
    return z.clamp(-largest, largest)


def _value(z: Tensor, out: Tensor | None, p: Columns, q: Columns, *slopes: object) -> Tensor:
    z = _within(z, p, q)
    denominator = horner(z, None, q).mul_(z).abs_().add_(1)
    return horner(z, out, p).div_(denominator)


def _gradients(
    z: Tensor, g: Tensor, total: Total, out: Tensor | None, p: Columns, q: Columns, p_slopes: Columns, q_slopes: Columns
) -> tuple[Tensor, list[Tensor]]:
    """Sums: g x^j / Q for every p_j, then g F x^j sign(A) / Q for every q_j, j >= 1."""
    z = _within(z, p, q)
    inner = horner(z, None, q).mul_(z)
    inverse = inner.abs().add_(1).reciprocal_()
    over = g * inverse
    under = horner(z, None, p).mul_(inverse).mul_(over).mul_(inner.sign_()).neg_()
    dz = horner(z, out, p_slopes).mul_(over)
    dz.addcmul_(under, horner(z, None, q_slopes))
    return dz, power_sums(z, over, total, len(p)) + power_sums(z, under, total, len(q) + 1)[1:]


def _collect(sums: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    return sums[:, : p.shape[-1]], sums[:, p.shape[-1] :]


KERNEL = Kernel(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect)
