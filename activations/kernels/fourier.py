"""Cosine series with free frequencies: F(x) = A_0 + sum_k A_k cos(w_k x - phi_k)."""

from typing import Any

import torch
from torch import Tensor

from activations.kernels.rows import columns, row_sums, working_dtype


def fourier(x: Tensor, amplitudes: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """A_0 + sum_k A_k cos(w_k x - phi_k), differentiable in x and all coefficients; finite for every finite x.

    x: (..., channels); amplitudes: (n + 1,) or (rows, n + 1); frequencies and phases: (n,) or (rows, n). Returns x's shape and dtype.
    """
    y: Tensor = _Fourier.apply(x, amplitudes, frequencies, phases)
    return y


def reference(x: Tensor, amplitudes: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate."""
    z = x.to(working_dtype(x))
    constant, *a = columns(amplitudes, x)
    y = constant.expand_as(z)
    for a_k, w_k, phi_k in zip(a, columns(frequencies, x), columns(phases, x), strict=True):
        y = y + a_k * torch.cos(_phase(z, w_k, phi_k))
    return y.to(x.dtype)


def _phase(z: Tensor, w: Tensor, phi: Tensor) -> Tensor:
    """w z - phi, kept finite: cos(inf) would be NaN where the product overflows."""
    largest = torch.finfo(z.dtype).max
    return (w * z - phi).clamp(-largest, largest)


class _Fourier(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, amplitudes: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
        return reference(x, amplitudes, frequencies, phases)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, amplitudes, frequencies, phases = ctx.saved_tensors
        z, g = x.to(working_dtype(x)), dy.to(working_dtype(x))
        slope = torch.zeros_like(z)
        d_a, d_w, d_phi = [g], [], []
        for a_k, w_k, phi_k in zip(columns(amplitudes, x)[1:], columns(frequencies, x), columns(phases, x), strict=True):
            theta = _phase(z, w_k, phi_k)
            a_sin = a_k * torch.sin(theta)
            slope = slope - w_k * a_sin
            d_a.append(g * torch.cos(theta))
            d_phi.append(g * a_sin)
            d_w.append(-g * a_sin * z)
        return (g * slope).to(x.dtype), row_sums(d_a, amplitudes), row_sums(d_w, frequencies), row_sums(d_phi, phases)
