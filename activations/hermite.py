"""Hermite activation: G(z) = sum_{k=0..n} a_k He_k(z) / k!, He_k the probabilists' Hermite polynomials.

Khalfaoui-Hassani and Kesselheim, Polynomial, trigonometric, and tropical activations, arXiv 2502.01247.
The derivative is the same series with a shifted by one: (He_k / k!)' = He_{k-1} / (k-1)!.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from activations import polynomial
from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.engine import Columns, Kernel, Pointwise, Total, may_look
from activations.moments import Moments, unit_gain
from activations.target import Target, Weight

BOUND = math.sqrt(3)


class Hermite(Learnable):
    """`coefficients` a: (n+1,) or (channels, n+1).

    init=unit: all a_k equal, a_0 by the Poincare rule: E F^2 = s^2, E F'^2 = 1. init=paper: a_k = 1/sqrt(e),
    a_0 = sqrt((1 - 1/n!)/e), whose gain is sum_{k<n} 1/(k! e). At unit gain float16 overflows for x/s above 84, 25, 14 and
    below -86, -27, -17 for degree 3, 5, 8; float32 and wider saturate to +-inf far beyond.

    clamp=true: G(z) = sum_k a_k He_k(c) / k!, c = z clamped to [-|b|, |b|], with a `bound` b (1,) of its own that starts at
    sqrt(3), as in the paper's ablation. It is bounded, and so overflows in no dtype; gains are found by quadrature.
    """

    options: ClassVar = {
        "degree": Option(3, range(1, 17)),
        **LEARNABLE_OPTIONS,
        "clamp": Option(False, (False, True), silent=True),
    }
    degrees = ("degree",)
    parameter_names: tuple[str, ...] = ("coefficients",)
    # When nothing is known of the inputs: against N(0, 1) it costs under 0.03 in maximal error and keeps F(+-6) near GELU.
    default_weight = Weight("normal", 1.5)
    coefficients: Tensor
    powers: Tensor

    def __init__(self, channels: int, input_std: float = 1.0, **options: Any) -> None:
        if options.get("clamp"):
            self.parameter_names = ("coefficients", "bound")
        super().__init__(channels, input_std, **options)

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        a = values["coefficients"]
        if "bound" in values:
            b = values["bound"][..., 0].abs()
            z = torch.minimum(torch.maximum(z, -b), b)
        return sum((a[..., k] * g for k, g in enumerate(basis(z, a.shape[-1]))), start=torch.zeros_like(z))

    def initial(self, init: str) -> Values:
        n = self.choices["degree"]
        h = torch.ones(n + 1, dtype=torch.float64)
        h[0] = 0
        bound = {"bound": torch.tensor([BOUND], dtype=torch.float64)} if self.choices["clamp"] else {}
        if init == "paper":
            h[0] = math.sqrt(1 - 1 / math.factorial(n))
            return {"coefficients": h / math.sqrt(math.e)} | bound
        scale, shift = unit_gain(self.moments({"coefficients": h} | bound, 1.0))
        a = scale * h
        a[0] = shift
        return {"coefficients": a} | bound

    def fitted(self, target: Target) -> Values:
        """The projection A_k = E[g(r u) He_k(u)], u ~ N(0, 1), r the weight's width in z, back in the basis of z.

        It minimises every mix of misfits in value and derivative at once (Stein: E[g He_k] = E g^(k)), so no system is solved.
        """
        if self.choices["clamp"]:
            return self._fitted_inside(target)
        r = target.slope_scale
        powers = torch.stack(basis(target.z / r, self.choices["degree"] + 1), dim=-1)  # He_k / k!
        k = torch.arange(powers.shape[-1], dtype=torch.float64)
        A = (target.weight * target.value) @ powers * (k + 1).lgamma().exp()
        return {"coefficients": rescale(A, 1 / r)}

    def _fitted_inside(self, target: Target) -> Values:
        """Least squares in value and derivative where the bound, three widths of the weight, lets the inputs through."""
        bound = torch.tensor([3 * target.slope_scale], dtype=torch.float64)
        count = self.choices["degree"] + 1
        units = {"coefficients": torch.eye(count, dtype=torch.float64), "bound": bound}
        return {"coefficients": self.combined(target, units), "bound": bound}

    def kinks(self, values: Values) -> Tensor:
        bound = values.get("bound", torch.zeros(0, dtype=torch.float64))
        return torch.cat([-bound, bound], dim=-1)

    def moments(self, values: Values, std: float) -> Moments:
        """E G^2 = sum_m A_m^2 / m!, E G'^2 = std^-2 sum_m m A_m^2 / m! with A the coefficients of z -> G(std z)."""
        if "bound" in values:
            return super().moments(values, std)
        A = rescale(values["coefficients"], std)
        k = torch.arange(A.shape[-1], dtype=torch.float64)
        energy = A.square() / (k + 1).lgamma().exp()
        return Moments(A[..., 0], energy.sum(-1), (k * energy).sum(-1) / std**2)

    def constants(self) -> Values:
        n = self.choices["degree"]
        return {"powers": power_basis(n + 1)} if n <= POWER_BASIS_DEGREE else {}

    def fast_path(self) -> Pointwise | None:
        if self.choices["clamp"]:
            return None
        if self.choices["degree"] > POWER_BASIS_DEGREE:
            return Pointwise(_RECURRENCE, self.coefficients, self.input_std)
        return Pointwise(_POWER_BASIS, self.coefficients, self.input_std, self.powers)


def basis(z: Tensor, count: int) -> list[Tensor]:
    """He_k(z) / k! for k < count by the three-term recurrence, stable at every degree."""
    g = [torch.ones_like(z), z]
    for k in range(2, count):
        g.append((z * g[k - 1] - g[k - 2]) / k)
    return g[:count]


def rescale(a: Tensor, ratio: float) -> Tensor:
    """Coefficients of z -> G(ratio z): A_m = ratio^m sum_j a_{m+2j} tau^j / j!, tau = (ratio^2 - 1) / 2."""
    tau = (ratio**2 - 1) / 2
    n = a.shape[-1]
    columns = [sum(a[..., m + 2 * j] * (tau**j / math.factorial(j)) for j in range((n - 1 - m) // 2 + 1)) for m in range(n)]
    return torch.stack([torch.as_tensor(column) * ratio**m for m, column in enumerate(columns)], dim=-1)


# The fast path: powers of x at low degree, the recurrence above.

# The power basis costs half the passes of the recurrence. In float32 for |x| <= 6 std its error relative to
# sum_k |a_k He_k/k!| stays below 4.3e-7 up to this degree, also for a_k that grow like sqrt(k!); at degree 6 it reaches
# 1.5e-6, at 16 3.5e-5 (the recurrence: 1.3e-6).
POWER_BASIS_DEGREE = 5


def power_basis(count: int) -> Tensor:
    """The coefficient of z^j in He_k(z)/k! at k * count + j, k and j < count: float64, (count * count,)."""
    table = torch.zeros(count, count, dtype=torch.float64)
    for k in range(count):
        for m in range(k // 2 + 1):
            table[k, k - 2 * m] = (-0.5) ** m / (math.factorial(m) * math.factorial(k - 2 * m))
    return table.view(-1)


def _factorials(like: Tensor) -> Tensor:
    """k! for every k of the last dimension of `like`."""
    return torch.arange(like.shape[-1], dtype=like.dtype, device=like.device).clamp_(min=1).cumprod(0)


def _scales(like: Tensor, std: Tensor) -> Tensor:
    """std^(1-j), which turns powers of z into powers of x."""
    return std ** torch.arange(1, 1 - like.shape[-1], -1, dtype=like.dtype, device=like.device)


def _fold(a: Tensor, std: Tensor, powers: Tensor) -> tuple[Tensor, Tensor]:
    """The polynomial in x, and its slopes."""
    return polynomial.with_slopes(_combine(a, powers[0].view(a.shape[1], -1)) * _scales(a, std))


def _unfold(sums: Tensor, a: Tensor, std: Tensor, powers: Tensor) -> tuple[Tensor, None, None]:
    """The transpose of `_fold`."""
    return _combine(sums * _scales(a, std), powers[0].view(a.shape[1], -1).t()), None, None


def _combine(rows: Tensor, table: Tensor) -> Tensor:
    """rows @ table, which autocast would round to bfloat16."""
    return (rows.unsqueeze(-1) * table).sum(-2)


def _clenshaw(z: Tensor, c: Columns) -> Tensor:
    """sum_k c_k He_k(z) from the top: b_k = c_k + z b_{k+1} - (k + 1) b_{k+2}, the sum is b_0."""
    above, b = torch.zeros_like(z), torch.zeros_like(z).add_(c[-1])
    for k in range(len(c) - 2, -1, -1):
        torch.add(c[k], above, alpha=-(k + 1), out=above).addcmul_(z, b)
        above, b = b, above
    return b


def _saturated(y: Tensor, z: Tensor, limits: Columns) -> Tensor:
    """Where the recurrence ran into inf - inf, the infinity of the leading term (NaN stays NaN)."""
    return torch.where(y.isnan(), torch.where(z > 0, limits[0], limits[1]) * z.abs(), y)


def _prepare(a: Tensor, std: Tensor) -> tuple[Tensor, ...]:
    """Coefficients of He_k in F and in F', 1/std, and F's limits at +-inf as signed infinities (0 where all a_k vanish)."""
    factorials = _factorials(a)
    k = torch.arange(a.shape[-1], device=a.device)
    leading = ((a != 0) * k).amax(1, keepdim=True)
    limit = a.gather(1, leading).sign() * math.inf
    limit = limit.nan_to_num(0.0, math.inf, -math.inf)
    limits = torch.cat([limit, limit * (1 - 2 * (leading % 2))], dim=1)
    return a * std / factorials, a[:, 1:] / factorials[:-1], 1 / std, limits


def _value(z: Tensor, out: Tensor | None, c: Columns, slopes: Columns, inverse: Columns, limits: Columns) -> Tensor:
    z = z * inverse[0]
    y = _clenshaw(z, c)
    if may_look(y) and bool(y.sum().isfinite()):
        return y  # a select is dear where it is a pass over memory of its own
    return _saturated(y, z, limits)


def _gradients(
    z: Tensor, g: Tensor, total: Total, out: Tensor | None, c: Columns, slopes: Columns, inverse: Columns, limits: Columns
) -> tuple[Tensor, list[Tensor]]:
    z = z * inverse[0]
    below, current = torch.ones_like(z), z.clone()
    sums = [total(g), total(g, z)]
    for k in range(1, len(c) - 1):  # He_{k+1} = z He_k - k He_{k-1}
        below.mul_(-k).addcmul_(z, current)
        below, current = current, below
        sums.append(total(g, current))
    return _clenshaw(z, slopes).mul_(g), sums


def _collect(sums: Tensor, a: Tensor, std: Tensor) -> tuple[Tensor, None]:
    return sums * std / _factorials(a), None


_POWER_BASIS = Kernel(prepare=_fold, value=polynomial.value, gradients=polynomial.gradients, collect=_unfold, tabulated=False)
_RECURRENCE = Kernel(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect)
