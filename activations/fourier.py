"""Fourier activation: G(z) = a_0 + sum_{k=1..n} a_k cos(w_k z - phi_k) / k!, amplitudes, frequencies and phases all learnable.

Khalfaoui-Hassani and Kesselheim, Polynomial, trigonometric, and tropical activations, arXiv 2502.01247.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.kernels.fourier import LARGEST_INPUT, fourier
from activations.kernels.pointwise import Pointwise
from activations.moments import Moments, unit_gain
from activations.target import Target, Weight


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

    def function(self) -> Pointwise:
        amplitudes = self.amplitudes * (self.inverse_factorials * self.input_std)
        return fourier(amplitudes, self.frequencies / self.input_std, self.phases)

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        a, w, phi = (values[name] for name in self.parameter_names)
        z = z.clamp(-LARGEST_INPUT, LARGEST_INPUT)
        terms = (a[..., k] * torch.cos(w[..., k - 1] * z - phi[..., k - 1]) / math.factorial(k) for k in range(1, a.shape[-1]))
        return sum(terms, start=a[..., 0] + torch.zeros_like(z))

    def constants(self) -> Values:
        return {"inverse_factorials": self._inverse_factorials()}

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

    def _inverse_factorials(self) -> Tensor:
        return torch.tensor([1 / math.factorial(k) for k in range(self.choices["degree"] + 1)], dtype=torch.float64)
