"""Safe Pade rational function: F(x) = P(x) / (1 + |A(x)|), A(x) = sum_{j>=1} q_j x^j (Molina et al., arXiv 1907.06732; rows as in KAT)."""

from typing import Any

import torch
from torch import Tensor

from activations.kernels.polynomial import horner
from activations.kernels.rows import columns, row_sums, working_dtype


def rational(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """sum_{j>=0} p_j x^j / (1 + |sum_{j>=1} q_j x^j|), differentiable in x, p and q.

    x: (..., channels); p: (m + 1,) or (rows, m + 1); q: (n,) or (rows, n), q_1 first. Returns x's shape and dtype.
    """
    y: Tensor = _Rational.apply(x, p, q)
    return y


def reference(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate."""
    z = x.to(working_dtype(x))
    return (horner(z, columns(p, x)) / (1 + (z * horner(z, columns(q, x))).abs())).to(x.dtype)


class _Rational(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return reference(x, p, q)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, p, q = ctx.saved_tensors
        z, g = x.to(working_dtype(x)), dy.to(working_dtype(x))
        p_columns, q_columns = columns(p, x), columns(q, x)
        inner = z * horner(z, q_columns)
        denominator = 1 + inner.abs()
        over = g / denominator
        under = -over * horner(z, p_columns) / denominator * inner.sign()
        p_slopes = [j * p_j for j, p_j in enumerate(p_columns)][1:] or [torch.zeros_like(p_columns[0])]
        dx = over * horner(z, p_slopes) + under * horner(z, [j * q_j for j, q_j in enumerate(q_columns, start=1)])
        d_p, d_q = [over], [under * z]
        for _ in range(p.shape[-1] - 1):
            d_p.append(d_p[-1] * z)
        for _ in range(q.shape[-1] - 1):
            d_q.append(d_q[-1] * z)
        return dx.to(x.dtype), row_sums(d_p, p), row_sums(d_q, q)
