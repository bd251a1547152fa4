"""Cosine series with free frequencies: F(x) = A_0 + sum_k A_k cos(w_k x - phi_k)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from activations.kernels.formula import Formula, Total
from activations.kernels.pointwise import Pointwise

# sin(pi u) = u S(u^2) and cos(pi u) = C(u^2) on |u| <= 1/2, minimax (Lawson iteration): errors 3.3e-9 and 4.7e-8.
SINE = (3.141592580044441, -5.167706878908098, 2.5500313769716443, -0.5980451722334068, 0.077220125166713)
COSINE = (0.9999999534645085, -4.934792858538107, 4.05841191187511, -1.3318801473371826, 0.21969677087432238)
# Beyond 2^24 turns float32 has no phase left; the bound on |x| keeps w x finite and with it its remainder.
LARGEST_INPUT = 1e15


def fourier(amplitudes: Tensor, frequencies: Tensor, phases: Tensor) -> Pointwise:
    """x -> A_0 + sum_k A_k cos(w_k x - phi_k), differentiable in x and all coefficients; finite for every finite x.

    x is clamped to +-LARGEST_INPUT; amplitudes: (n + 1,) or (rows, n + 1); frequencies and phases: (n,) or (rows, n). The
    phase is rounded to the working dtype: an error of |w x| 2^-24 in float32.
    """
    return Pointwise(_FORMULA, amplitudes, frequencies, phases)


def reference(x: Tensor, amplitudes: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """The same in plain torch for autograd to differentiate; coefficients (k,) or (channels, k), x in the dtype to work in."""
    terms = (amplitudes[..., k + 1] * torch.cos(frequencies[..., k] * x - phases[..., k]) for k in range(frequencies.shape[-1]))
    return sum(terms, start=amplitudes[..., 0] + torch.zeros_like(x))


def _prepare(amplitudes: Tensor, frequencies: Tensor, phases: Tensor) -> tuple[Tensor, ...]:
    """Also the slope factors, and minus the phases: the operators below add."""
    return amplitudes, frequencies, -phases, -amplitudes[:, 1:] * frequencies


def _cosine(z: Tensor, w: Tensor, phi: Tensor) -> Tensor:
    """cos(w z + phi). A compiler gets a polynomial: sin and cos in its loop cost twice as much."""
    if _as_polynomial(z):
        s, _ = _half_angle(z, w, phi)
        return 1 - 2 * s * s
    return torch.addcmul(phi, z, w).cos_()


def _cosine_and_sine(z: Tensor, w: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    if _as_polynomial(z):
        s, c = _half_angle(z, w, phi)
        return 1 - 2 * s * s, 2 * s * c
    theta = torch.addcmul(phi, z, w)
    return theta.cos(), theta.sin_()


def _as_polynomial(z: Tensor) -> bool:
    return torch.compiler.is_compiling() and z.dtype == torch.float32


def _half_angle(z: Tensor, w: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """sin and cos of half of w z + phi, reduced to |half| <= pi/2."""
    turns = z * (w * (0.5 / math.pi)) + phi * (0.5 / math.pi)
    u = turns - turns.round()
    v = u * u
    s, c = v * SINE[-1] + SINE[-2], v * COSINE[-1] + COSINE[-2]
    for s_j, c_j in zip(reversed(SINE[:-2]), reversed(COSINE[:-2]), strict=True):
        s, c = s * v + s_j, c * v + c_j
    return s * u, c


def _value(
    z: Tensor, out: Tensor | None, a: Sequence[Tensor], w: Sequence[Tensor], phi: Sequence[Tensor], slopes: object
) -> Tensor:
    z = z.clamp(-LARGEST_INPUT, LARGEST_INPUT)
    y = torch.zeros_like(z).add_(a[0])
    for a_k, w_k, phi_k in zip(a[1:], w, phi, strict=True):
        y.addcmul_(a_k, _cosine(z, w_k, phi_k))
    return y


def _gradients(
    z: Tensor,
    g: Tensor,
    total: Total,
    out: Tensor | None,
    a: Sequence[Tensor],
    w: Sequence[Tensor],
    phi: Sequence[Tensor],
    slopes: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Sums: g, then for every k g cos, g sin, g x sin."""
    # Another bound than the value's: a compiler that sees the same cosines in both keeps some of them for the backward pass.
    z = z.clamp(-2 * LARGEST_INPUT, 2 * LARGEST_INPUT)
    slope, gz, sums = torch.zeros_like(z), g * z, [total(g)]
    for w_k, phi_k, slope_k in zip(w, phi, slopes, strict=True):
        cosine, sine = _cosine_and_sine(z, w_k, phi_k)
        slope.addcmul_(slope_k, sine)
        sums += [total(g, cosine), total(g, sine), total(gz, sine)]
    return slope.mul_(g), sums


def _collect(sums: Tensor, amplitudes: Tensor, frequencies: Tensor, phases: Tensor) -> tuple[Tensor, ...]:
    a = amplitudes[:, 1:]
    return torch.cat([sums[:, :1], sums[:, 1::3]], dim=1), -a * sums[:, 3::3], a * sums[:, 2::3]


_FORMULA = Formula(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect, tabulated=True)
