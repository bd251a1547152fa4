"""Hermite series F(x) = std * sum_k a_k He_k(x/std)/k! (probabilists' Hermite polynomials)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from activations.kernels import polynomial
from activations.kernels.formula import Formula, Total, may_look
from activations.kernels.pointwise import Pointwise

# The power basis costs half the passes of the recurrence. In float32 for |x| <= 6 std its error relative to
# sum_k |a_k He_k/k!| stays below 4.3e-7 up to this degree, also for a_k that grow like sqrt(k!); at degree 6 it reaches
# 1.5e-6, at 16 3.5e-5 (the recurrence: 1.3e-6).
POWER_BASIS_DEGREE = 5


def hermite(coefficients: Tensor, std: Tensor, powers: Tensor | None = None) -> Pointwise:
    """x -> std * sum_k a_k He_k(x/std)/k!, differentiable in x and a; saturates to +-inf, never NaN for finite x.

    coefficients a: (k,) or (rows, k), degree k - 1; std: 0-dim, no gradient; powers: `power_basis(k)`, for whoever keeps it.
    """
    count = coefficients.shape[-1]
    if count > POWER_BASIS_DEGREE + 1:
        return Pointwise(_RECURRENCE, coefficients, std)
    powers = power_basis(count).to(coefficients.device) if powers is None else powers
    return Pointwise(_POWER_BASIS, coefficients, std, powers)


def power_basis(count: int) -> Tensor:
    """The coefficient of z^j in He_k(z)/k! at k * count + j, k and j < count: float64, (count * count,)."""
    table = torch.zeros(count, count, dtype=torch.float64)
    for k in range(count):
        for m in range(k // 2 + 1):
            table[k, k - 2 * m] = (-0.5) ** m / (math.factorial(m) * math.factorial(k - 2 * m))
    return table.view(-1)


def reference(x: Tensor, coefficients: Tensor, std: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate; coefficients: (k,) or (channels, k), x in the dtype to work in."""
    z, count = x / std, coefficients.shape[-1]
    g = [torch.ones_like(z), z]
    for k in range(1, count - 1):
        g.append((z * g[k] - g[k - 1]) / (k + 1))  # He_k/k!
    return std * torch.stack([coefficients[..., k] * g[k] for k in range(count)]).sum(0)


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


def _clenshaw(z: Tensor, c: Sequence[Tensor]) -> Tensor:
    """sum_k c_k He_k(z) from the top: b_k = c_k + z b_{k+1} - (k + 1) b_{k+2}, the sum is b_0."""
    above, b = torch.zeros_like(z), torch.zeros_like(z).add_(c[-1])
    for k in range(len(c) - 2, -1, -1):
        torch.add(c[k], above, alpha=-(k + 1), out=above).addcmul_(z, b)
        above, b = b, above
    return b


def _saturated(y: Tensor, z: Tensor, limits: Sequence[Tensor]) -> Tensor:
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


def _value(
    z: Tensor,
    out: Tensor | None,
    c: Sequence[Tensor],
    slopes: Sequence[Tensor],
    inverse: Sequence[Tensor],
    limits: Sequence[Tensor],
) -> Tensor:
    z = z * inverse[0]
    y = _clenshaw(z, c)
    if may_look(y) and bool(y.sum().isfinite()):
        return y  # a select is dear where it is a pass over memory of its own
    return _saturated(y, z, limits)


def _gradients(
    z: Tensor,
    g: Tensor,
    total: Total,
    out: Tensor | None,
    c: Sequence[Tensor],
    slopes: Sequence[Tensor],
    inverse: Sequence[Tensor],
    limits: Sequence[Tensor],
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


_POWER_BASIS = Formula(prepare=_fold, value=polynomial.value, gradients=polynomial.gradients, collect=_unfold)
_RECURRENCE = Formula(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect, tabulated=True)
