"""Polynomial in the power basis: F(x) = sum_j c_j x^j."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from activations.kernels.rows import columns, row_sums, working_dtype


def polynomial(x: Tensor, c: Tensor) -> Tensor:
    """sum_j c_j x^j, differentiable in x and c; saturates to +-inf, never NaN for finite x.

    x: (..., channels); c: (k,) or (rows, k), degree k - 1. Returns x's shape and dtype.
    """
    y: Tensor = _Polynomial.apply(x, c)
    return y


def reference(x: Tensor, c: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate."""
    return horner(x.to(working_dtype(x)), columns(c, x)).to(x.dtype)


def horner(x: Tensor, c: Sequence[Tensor]) -> Tensor:
    """((c_n x + c_{n-1}) x + ...) + c_0 with x's shape.

    At an infinite partial sum a vanishing x cannot turn up: x is the same in every step, so no 0 * inf and no NaN for finite x
    except inf - inf, which needs |c_j| near the largest float.
    """
    y = c[-1].expand_as(x)
    for c_j in reversed(c[:-1]):
        y = y * x + c_j
    return y


class _Polynomial(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, c: Tensor) -> Tensor:
        return horner(x.to(working_dtype(x)), columns(c, x)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, c = ctx.saved_tensors
        z, g = x.to(working_dtype(x)), dy.to(working_dtype(x))
        slopes = [j * c_j for j, c_j in enumerate(columns(c, x))][1:]
        dx = (g * horner(z, slopes)).to(x.dtype) if slopes else torch.zeros_like(x)
        terms = [g]
        for _ in range(c.shape[-1] - 1):
            terms.append(terms[-1] * z)
        return dx, row_sums(terms, c)
