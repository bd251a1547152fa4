"""Hermite series F(x) = std * sum_k a_k He_k(x/std)/k! (probabilists' Hermite polynomials)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from activations.kernels.rows import columns, row_sums, working_dtype


def hermite(x: Tensor, coefficients: Tensor, std: Tensor) -> Tensor:
    """std * sum_k a_k He_k(x/std)/k!, differentiable in x and the coefficients a; saturates to +-inf, never NaN for finite x.

    x: (..., channels); coefficients: (k,) or (rows, k), degree k - 1; std: 0-dim, no gradient. Returns x's shape and dtype.
    """
    y: Tensor = _Hermite.apply(x, coefficients, std)
    return y


def reference(x: Tensor, coefficients: Tensor, std: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate."""
    z = x.to(working_dtype(x)) / std
    return (
        std * sum(a_k * g_k for a_k, g_k in zip(columns(coefficients, x), basis(z, coefficients.shape[-1]), strict=True))
    ).to(x.dtype)


def basis(z: Tensor, count: int) -> list[Tensor]:
    """g_k = He_k(z)/k! for k < count, by g_{k+1} = (z g_k - g_{k-1})/(k + 1)."""
    g = [torch.ones_like(z), z]
    for k in range(1, count - 1):
        g.append((z * g[k] - g[k - 1]) / (k + 1))
    return g[:count]


def clenshaw(z: Tensor, a: Sequence[Tensor]) -> Tensor:
    """sum_k a_k He_k(z)/k! from the top: b_k = a_k + z b_{k+1}/(k + 1) - b_{k+2}/(k + 2), the sum is b_0."""
    above, b = torch.zeros_like(z), a[-1].expand_as(z)
    for k in range(len(a) - 2, -1, -1):
        b, above = a[k] + z * b * (1 / (k + 1)) - above * (1 / (k + 2)), b
    return b


class _Hermite(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, coefficients: Tensor, std: Tensor) -> Tensor:
        return (std * clenshaw(x.to(working_dtype(x)) / std, columns(coefficients, x))).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, coefficients, std = ctx.saved_tensors
        z, g = x.to(working_dtype(x)) / std, dy.to(working_dtype(x))
        a = columns(coefficients, x)
        # (He_k/k!)' = He_{k-1}/(k-1)!: the derivative is the same series with its coefficients shifted by one.
        dx = (g * clenshaw(z, a[1:])).to(x.dtype) if len(a) > 1 else torch.zeros_like(x)
        return dx, row_sums([g * std * g_k for g_k in basis(z, len(a))], coefficients), None
