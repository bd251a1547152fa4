"""Fourier activation: G(z) = a_0 + sum_{k=1..n} a_k cos(w_k z - phi_k) / k!, amplitudes, frequencies and phases all learnable.

Khalfaoui-Hassani and Kesselheim, Polynomial, trigonometric, and tropical activations, arXiv 2502.01247.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.engine import Columns, Kernel, Pointwise, Total
from activations.moments import Moments, unit_gain
from activations.target import Target, Weight

# Beyond 2^24 turns float32 has no phase left; the bound on |x| keeps w x finite and with it its remainder.
LARGEST_INPUT = 1e15


class Fourier(Learnable):
    """`amplitudes` a: (n+1,), `frequencies` w and `phases` phi: (n,), or (channels, ...). All start at w_k = k, phi_k = pi/4.

    init=unit: all a_k equal, a_0 by the Poincare rule under N(0, s^2). init=paper: the published theorem, unit gain for inputs
    uniform on [-pi, pi] (Wirtinger's inequality gives the same rule there): under N(0, 1) E F^2 = E F'^2 = 1.93 in the limit of
    high degree. init=library: what the authors' torchortho starts with, the theorem without the factor sqrt(2) of the cosines
    and at the limit of high degree: neither law gives it unit gain (1.31, 0.96 under N(0, 1) at degree 5).
    The function is bounded by |a_0| + sum |a_k| / k!, so it overflows in no dtype.
    """

    # 13! is the last factorial that float32 holds exactly, and beyond 1/12! an amplitude moves nothing.
    options: ClassVar = {
        "degree": Option(5, range(1, 13)),
        **LEARNABLE_OPTIONS,
        "init": Option("unit", (*LEARNABLE_OPTIONS["init"].allowed, "library")),
    }
    degrees = ("degree",)
    parameter_names = ("amplitudes", "frequencies", "phases")
    default_weight = Weight("uniform", 6.0)
    amplitudes: Tensor
    frequencies: Tensor
    phases: Tensor
    inverse_factorials: Tensor

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        a, w, phi = (values[name] for name in self.parameter_names)
        z = z.clamp(-LARGEST_INPUT, LARGEST_INPUT)
        terms = (a[..., k] * torch.cos(w[..., k - 1] * z - phi[..., k - 1]) / math.factorial(k) for k in range(1, a.shape[-1]))
        return sum(terms, start=a[..., 0] + torch.zeros_like(z))

    def initial(self, init: str) -> Values:
        n = self.choices["degree"]
        w = torch.arange(1, n + 1, dtype=torch.float64)
        values = {"amplitudes": torch.ones(n + 1).double(), "frequencies": w, "phases": torch.full_like(w, math.pi / 4)}
        values["amplitudes"][0] = 0
        if init == "unit":
            scale, shift = unit_gain(self.moments(values, 1.0))
        else:
            terms = sum(math.factorial(k) ** -2 for k in range(n if init == "paper" else 30))  # I_0(2) in the limit
            scale = torch.tensor(terms).double().rsqrt() * (math.sqrt(2) if init == "paper" else 1)
            shift = torch.tensor((1 - math.factorial(n) ** -2) / terms).double().sqrt()
        values["amplitudes"] *= scale
        values["amplitudes"][0] = shift
        return values

    def fitted(self, target: Target) -> Values:
        """Least squares over w_k = k w for the best w, then with all frequencies free from the best starts.

        Half the period from 1 to 3 times the range is searched: shorter ones ring at its ends, longer ones cancel huge terms.
        """
        n = self.choices["degree"]
        k = torch.arange(1, n + 1, dtype=torch.float64)
        one, zero = torch.ones_like(target.z)[:, None], torch.zeros_like(target.z)[:, None]
        right = solve.stack(target, one, zero)[1]

        def design(w: Tensor) -> Tensor:
            angle = target.z[:, None] * w
            cos, sin = angle.cos(), angle.sin()
            return solve.stack(target, torch.cat([one, cos, sin], dim=1), torch.cat([zero, -w * sin, w * cos], dim=1))[0]

        def harmonic(w: float) -> float:
            return solve.project(design, right, k * w).misfit

        longest = math.pi / target.radius
        w = solve.golden_section(harmonic, longest / 3, longest)
        starts = [k * start for start in (w, longest / 3, longest / 2, longest)]
        best = solve.best_projection(design, right, starts, steps=max(20, 240 // n))
        constant, c, s = best.c.split([1, n, n])
        amplitudes = torch.cat([constant, torch.hypot(c, s) / self._inverse_factorials()[1:]])
        return {"amplitudes": amplitudes, "frequencies": best.theta, "phases": torch.atan2(s, c)}

    def moments(self, values: Values, std: float) -> Moments:
        """Sums of g(w_j -+ w_k) cos(phi_j -+ phi_k), g(u) = exp(-std^2 u^2 / 2) the characteristic function of the inputs."""
        a, w, phi = (values[name] for name in self.parameter_names)
        c = a[..., 1:] * self._inverse_factorials()[1:]
        minus, plus = (
            torch.exp(-0.5 * (std * (w[..., :, None] + sign * w[..., None, :])).square())
            * torch.cos(phi[..., :, None] + sign * phi[..., None, :])
            for sign in (-1, 1)
        )
        pairs = 0.5 * c[..., :, None] * c[..., None, :]
        mean = (c * torch.exp(-0.5 * (std * w).square()) * torch.cos(phi)).sum(-1)
        second = (pairs * (minus + plus)).sum((-2, -1))
        slope = (pairs * w[..., :, None] * w[..., None, :] * (minus - plus)).sum((-2, -1))
        a_0 = a[..., 0]
        return Moments(a_0 + mean, a_0.square() + 2 * a_0 * mean + second, slope)

    def constants(self) -> Values:
        return {"inverse_factorials": self._inverse_factorials()}

    def fast_path(self) -> Pointwise:
        amplitudes = self.amplitudes * (self.inverse_factorials * self.input_std)
        return Pointwise(KERNEL, amplitudes, self.frequencies / self.input_std, self.phases)

    def _inverse_factorials(self) -> Tensor:
        return torch.tensor([1 / math.factorial(k) for k in range(self.choices["degree"] + 1)], dtype=torch.float64)


# The fast path.

# Another bound than the value's: a compiler that sees the same cosines in both keeps some of them for the backward pass.
LARGEST_IN_GRADIENTS = 2 * LARGEST_INPUT
# sin(pi u) = u S(u^2) and cos(pi u) = C(u^2) on |u| <= 1/2, minimax (Lawson iteration): errors 3.3e-9 and 4.7e-8.
SINE = (3.141592580044441, -5.167706878908098, 2.5500313769716443, -0.5980451722334068, 0.077220125166713)
COSINE = (0.9999999534645085, -4.934792858538107, 4.05841191187511, -1.3318801473371826, 0.21969677087432238)


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


def _value(z: Tensor, out: Tensor | None, a: Columns, w: Columns, phi: Columns, slopes: object) -> Tensor:
    z = z.clamp(-LARGEST_INPUT, LARGEST_INPUT)
    y = torch.zeros_like(z).add_(a[0])
    for a_k, w_k, phi_k in zip(a[1:], w, phi, strict=True):
        y.addcmul_(a_k, _cosine(z, w_k, phi_k))
    return y


def _gradients(
    z: Tensor, g: Tensor, total: Total, out: Tensor | None, a: Columns, w: Columns, phi: Columns, slopes: Columns
) -> tuple[Tensor, list[Tensor]]:
    """Sums: g, then for every k g cos, g sin, g x sin."""
    z = z.clamp(-LARGEST_IN_GRADIENTS, LARGEST_IN_GRADIENTS)
    slope, gz, sums = torch.zeros_like(z), g * z, [total(g)]
    for w_k, phi_k, slope_k in zip(w, phi, slopes, strict=True):
        cosine, sine = _cosine_and_sine(z, w_k, phi_k)
        slope.addcmul_(slope_k, sine)
        sums += [total(g, cosine), total(g, sine), total(gz, sine)]
    return slope.mul_(g), sums


def _collect(sums: Tensor, amplitudes: Tensor, frequencies: Tensor, phases: Tensor) -> tuple[Tensor, ...]:
    a = amplitudes[:, 1:]
    return torch.cat([sums[:, :1], sums[:, 1::3]], dim=1), -a * sums[:, 3::3], a * sums[:, 2::3]


KERNEL = Kernel(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect)
