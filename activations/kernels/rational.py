"""Safe Pade rational function F(x) = P(x) / (1 + |A(x)|), A(x) = sum_{j>=1} q_j x^j (Molina et al., arXiv 1907.06732)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from activations.kernels.formula import Formula, Total
from activations.kernels.pointwise import Pointwise
from activations.kernels.polynomial import horner, power_sums, with_slopes


def rational(p: Tensor, q: Tensor) -> Pointwise:
    """x -> sum_{j>=0} p_j x^j / (1 + |sum_{j>=1} q_j x^j|), differentiable in x, p and q.

    x is clamped to where no power overflows; p: (m + 1,) or (rows, m + 1); q: (n,) or (rows, n), q_1 first.
    """
    return Pointwise(_FORMULA, p, q)


def reference(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate; p, q: (k,) or (channels, k), x in the dtype to work in."""
    numerator = torch.stack([p[..., j] * x**j for j in range(p.shape[-1])]).sum(0)
    return numerator / (1 + torch.stack([q[..., j] * x ** (j + 1) for j in range(q.shape[-1])]).sum(0).abs())


def _prepare(p: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    """The coefficients, and those of P' and A'."""
    return p, q, with_slopes(p)[1], q * torch.arange(1, q.shape[1] + 1, dtype=q.dtype, device=q.device)


def _within(z: Tensor, p: Sequence[Tensor], q: Sequence[Tensor]) -> Tensor:
    """z clamped to where no power overflows: inf / inf would be NaN."""
    largest = torch.finfo(z.dtype).max ** (1 / (max(len(p) - 1, len(q)) + 1))
    return z.clamp(-largest, largest)


def _value(z: Tensor, out: Tensor | None, p: Sequence[Tensor], q: Sequence[Tensor], *slopes: object) -> Tensor:
    z = _within(z, p, q)
    denominator = horner(z, None, q).mul_(z).abs_().add_(1)
    return horner(z, out, p).div_(denominator)


def _gradients(
    z: Tensor,
    g: Tensor,
    total: Total,
    out: Tensor | None,
    p: Sequence[Tensor],
    q: Sequence[Tensor],
    p_slopes: Sequence[Tensor],
    q_slopes: Sequence[Tensor],
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


_FORMULA = Formula(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect, tabulated=True)
