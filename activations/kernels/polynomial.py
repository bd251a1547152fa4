"""Polynomial in the power basis: F(x) = sum_j c_j x^j."""

from collections.abc import Sequence

import torch
from torch import Tensor

from activations.kernels.formula import Formula, Total, may_look
from activations.kernels.pointwise import Pointwise


def polynomial(c: Tensor) -> Pointwise:
    """x -> sum_j c_j x^j, differentiable in x and c; saturates to +-inf, never NaN for finite x. c: (k,) or (rows, k)."""
    return Pointwise(_FORMULA, c)


def reference(x: Tensor, c: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate; c: (k,), or (channels, k), x in the dtype to work in."""
    return torch.stack([c[..., j] * x**j for j in range(c.shape[-1])]).sum(0)


def horner(z: Tensor, out: Tensor | None, c: Sequence[Tensor]) -> Tensor:
    """((c_n z + c_{n-1}) z + ...) + c_0 in z's shape, built in `out`.

    Infinite partial sums stay infinite: every step multiplies by the same large z, so neither 0 * inf nor inf - inf arises.
    """
    if len(c) == 1:
        return torch.zeros_like(z).add_(c[0])
    if c[-1].ndim == 0 and may_look(z):
        y = torch.add(c[-2], z, alpha=float(c[-1]), out=out)  # one pass over memory instead of two
    else:
        y = torch.mul(z, c[-1], out=out).add_(c[-2])
    for c_j in reversed(c[:-2]):
        torch.addcmul(c_j, z, y, out=y)
    return y


def power_sums(z: Tensor, g: Tensor, total: Total, count: int, out: Tensor | None = None) -> list[Tensor]:
    """total(g z^j) for j < count; `out` is overwritten."""
    sums, product = [total(g)], g
    for j in range(1, count):
        sums.append(total(product, z))
        if j + 1 < count:
            product = torch.mul(g, z, out=out) if product is g else product.mul_(z)
    return sums


def with_slopes(c: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients, and those of the derivative (at least one)."""
    return c, (c * torch.arange(c.shape[1], dtype=c.dtype, device=c.device))[:, min(1, c.shape[1] - 1) :]


def value(z: Tensor, out: Tensor | None, c: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    return horner(z, out, c)


def gradients(
    z: Tensor, g: Tensor, total: Total, out: Tensor | None, c: Sequence[Tensor], slopes: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    sums = power_sums(z, g, total, len(c), out)  # before `out` holds the slopes: one buffer less in the cache
    return horner(z, out, slopes).mul_(g), sums


_FORMULA = Formula(prepare=with_slopes, value=value, gradients=gradients, collect=lambda sums, c: (sums,))
