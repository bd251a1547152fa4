"""What several families do with powers of x: Horner's rule, sums of g x^j, and the kernel of F(x) = sum_j c_j x^j."""

import torch
from torch import Tensor

from activations.engine import Columns, Kernel, Pointwise, Total, may_look


def polynomial(c: Tensor) -> Pointwise:
    """x -> sum_j c_j x^j, differentiable in x and c; saturates to +-inf, never NaN for finite x. c: (k,) or (rows, k)."""
    return Pointwise(KERNEL, c)


def horner(z: Tensor, out: Tensor | None, c: Columns) -> Tensor:
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


def value(z: Tensor, out: Tensor | None, c: Columns, slopes: Columns) -> Tensor:
    return horner(z, out, c)


def gradients(
    z: Tensor, g: Tensor, total: Total, out: Tensor | None, c: Columns, slopes: Columns
) -> tuple[Tensor, list[Tensor]]:
    sums = power_sums(z, g, total, len(c), out)  # before `out` holds the slopes: one buffer less in the cache
    return horner(z, out, slopes).mul_(g), sums


KERNEL = Kernel(prepare=with_slopes, value=value, gradients=gradients, collect=lambda sums, c: (sums,), tabulated=False)
