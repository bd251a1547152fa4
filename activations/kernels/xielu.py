"""xIELU (Huang and Schlag, arXiv 2411.13010): quadratic for positive inputs, integrated ELU for negative ones."""

from typing import Any

import torch
from torch import Tensor

from activations.kernels.rows import columns, row_sums, working_dtype


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, std: Tensor) -> Tensor:
    """std G(x/std), G(z) = alpha_p z^2 + beta z for z > 0, alpha_n (expm1(z) - z) + beta z otherwise; no gradient for std (0-dim).

    These are the effective slopes: the paper's positivity, alpha_p = softplus(a_p) and alpha_n = beta + softplus(a_n), is the caller's.
    x: (..., channels); alpha_p, alpha_n, beta: (1,) or (rows, 1). Returns x's shape and dtype.
    """
    y: Tensor = _XIELU.apply(x, alpha_p, alpha_n, beta, std)
    return y


def reference(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, std: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate."""
    z = x.to(working_dtype(x)) / std
    (a_p,), (a_n,), (b,) = columns(alpha_p, x), columns(alpha_n, x), columns(beta, x)
    return (std * (torch.where(z > 0, a_p * z * z, a_n * (torch.expm1(z.clamp(max=0)) - z)) + b * z)).to(x.dtype)


class _XIELU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, std: Tensor) -> Tensor:
        return reference(x, alpha_p, alpha_n, beta, std)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, alpha_p, alpha_n, beta, std = ctx.saved_tensors
        z, g = x.to(working_dtype(x)) / std, dy.to(working_dtype(x))
        (a_p,), (a_n,), (b,) = columns(alpha_p, x), columns(alpha_n, x), columns(beta, x)
        positive, tail = z > 0, torch.expm1(z.clamp(max=0))
        dx = g * (torch.where(positive, 2 * a_p * z, a_n * tail) + b)
        g = std * g
        d_p = torch.where(positive, g * z * z, 0)
        d_n = torch.where(positive, 0, g * (tail - z))
        return dx.to(x.dtype), row_sums([d_p], alpha_p), row_sums([d_n], alpha_n), row_sums([g * z], beta), None
