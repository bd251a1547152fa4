"""xIELU (Huang and Schlag, arXiv 2411.13010): quadratic for positive inputs, integrated ELU for negative ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from activations.kernels.formula import Formula, Total
from activations.kernels.pointwise import Pointwise


def xielu(alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, std: Tensor) -> Pointwise:
    """x -> std G(x/std), G(z) = alpha_p z^2 + beta z for z > 0, alpha_n (expm1(z) - z) + beta z otherwise; std 0-dim, constant.

    Effective slopes: the paper's positivity, alpha_p = softplus(a_p) and alpha_n = beta + softplus(a_n), is the caller's.
    alpha_p, alpha_n, beta: (1,) or (rows, 1).
    """
    return Pointwise(_FORMULA, alpha_p, alpha_n, beta, std)


def reference(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, std: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate; coefficients (1,) or (channels, 1), x in the working dtype."""
    z = x / std
    tail = torch.expm1(z.clamp(max=0)) - z
    return std * (torch.where(z > 0, alpha_p[..., 0] * z**2, alpha_n[..., 0] * tail) + beta[..., 0] * z)


def _prepare(alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, std: Tensor) -> tuple[Tensor, ...]:
    """With p = max(x, 0), n = min(x, 0): F = p (p alpha_p/std + beta) + alpha_n std expm1(n/std) - (alpha_n - beta) n."""
    return alpha_p / std, alpha_n * std, alpha_n, beta - alpha_n, beta, 1 / std


def _value(z: Tensor, out: Tensor | None, *columns: Sequence[Tensor]) -> Tensor:
    (a_p,), (height,), _, (drop,), (beta,), (inverse,) = columns
    positive, negative = z.clamp(min=0), torch.clamp(z, max=0, out=out)
    y = positive.mul(a_p).add_(beta).mul_(positive)
    return y.addcmul_(drop, negative).addcmul_(height, torch.expm1(negative * inverse))


def _gradients(
    z: Tensor, g: Tensor, total: Total, out: Tensor | None, *columns: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Sums: g p^2, g (std e - (x - p)), g x."""
    (a_p,), _, (a_n,), _, (beta,), (inverse,) = columns
    positive, negative = z.clamp(min=0), z.clamp(max=0)
    tail = torch.expm1(negative * inverse)
    dz = torch.mul(positive, 2 * a_p, out=out).addcmul_(a_n, tail).add_(beta).mul_(g)
    return dz, [total(positive.mul_(positive), g), total(tail.div_(inverse).sub_(negative), g), total(g, z)]


def _collect(sums: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, std: Tensor) -> tuple[Tensor | None, ...]:
    p, n, b = sums.split(1, dim=1)
    return p / std, n, b, None


_FORMULA = Formula(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect, tabulated=True)
