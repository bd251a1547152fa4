"""Hermite activation: G(z) = sum_{k=0..n} a_k He_k(z) / k!, He_k the probabilists' Hermite polynomials.

Khalfaoui-Hassani and Kesselheim, Polynomial, trigonometric, and tropical activations, arXiv 2502.01247.
The derivative is the same series with a shifted by one: (He_k / k!)' = He_{k-1} / (k-1)!.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.kernels.hermite import POWER_BASIS_DEGREE, hermite, power_basis
from activations.kernels.pointwise import Pointwise
from activations.moments import Moments, differentiate, unit_gain
from activations.target import Target, Weight

BOUND = math.sqrt(3)


class Hermite(Learnable):
    """`coefficients` a: (n+1,) or (channels, n+1).

    init=unit: all a_k equal, a_0 by the Poincare rule: E F^2 = s^2, E F'^2 = 1. init=paper: a_k = 1/sqrt(e),
    a_0 = sqrt((1 - 1/n!)/e), whose gain is sum_{k<n} 1/(k! e). At unit gain float16 overflows for x/s above 84, 25, 14 and
    below -86, -27, -17 for degree 3, 5, 8; float32 and wider saturate to +-inf far beyond.

    clamp=true: G(z) = sum_k a_k He_k(c) / k!, c = z clamped to [-|b|, |b|], with a `bound` b (1,) of its own that starts at
    sqrt(3), as in the paper's ablation. It is bounded, and so overflows in no dtype; gains are found by quadrature.
    """

    options: ClassVar = {
        "degree": Option(3, range(1, 17)),
        **LEARNABLE_OPTIONS,
        "clamp": Option(False, (False, True), silent=True),
    }
    degrees = ("degree",)
    parameter_names: tuple[str, ...] = ("coefficients",)
    # When nothing is known of the inputs: against N(0, 1) it costs under 0.03 in maximal error and keeps F(+-6) near GELU.
    default_weight = Weight("normal", 1.5)
    coefficients: Tensor

    def __init__(self, channels: int, input_std: float = 1.0, **options: Any) -> None:
        if options.get("clamp"):
            self.parameter_names = ("coefficients", "bound")
        super().__init__(channels, input_std, **options)

    @property
    def has_kernel(self) -> bool:
        return not self.choices["clamp"]

    def function(self) -> Pointwise:
        return hermite(self.coefficients, self.input_std, self._buffers.get("powers"))

    def constants(self) -> Values:
        n = self.choices["degree"]
        return {"powers": power_basis(n + 1)} if n <= POWER_BASIS_DEGREE else {}

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        a = values["coefficients"]
        if "bound" in values:
            b = values["bound"][..., 0].abs()
            z = torch.minimum(torch.maximum(z, -b), b)
        return sum((a[..., k] * g for k, g in enumerate(basis(z, a.shape[-1]))), start=torch.zeros_like(z))

    def initial(self, init: str) -> Values:
        n = self.choices["degree"]
        h = torch.ones(n + 1, dtype=torch.float64)
        h[0] = 0
        bound = {"bound": torch.tensor([BOUND], dtype=torch.float64)} if self.choices["clamp"] else {}
        if init == "paper":
            h[0] = math.sqrt(1 - 1 / math.factorial(n))
            return {"coefficients": h / math.sqrt(math.e)} | bound
        scale, shift = unit_gain(self.moments({"coefficients": h} | bound, 1.0))
        a = scale * h
        a[0] = shift
        return {"coefficients": a} | bound

    def fitted(self, target: Target) -> Values:
        """The projection A_k = E[g(r u) He_k(u)], u ~ N(0, 1), r the weight's width in z, back in the basis of z.

        It minimises every mix of misfits in value and derivative at once (Stein: E[g He_k] = E g^(k)), so no system is solved.
        """
        if self.choices["clamp"]:
            return self._fitted_inside(target)
        r = target.slope_scale
        powers = torch.stack(basis(target.z / r, self.choices["degree"] + 1), dim=-1)  # He_k / k!
        k = torch.arange(powers.shape[-1], dtype=torch.float64)
        A = (target.weight * target.value) @ powers * (k + 1).lgamma().exp()
        return {"coefficients": rescale(A, 1 / r)}

    def _fitted_inside(self, target: Target) -> Values:
        """Least squares in value and derivative where the bound, three widths of the weight, lets the inputs through."""
        bound = torch.tensor([3 * target.slope_scale], dtype=torch.float64)
        count = self.choices["degree"] + 1
        units = {"coefficients": torch.eye(count, dtype=torch.float64), "bound": bound}
        basis, slopes = differentiate(lambda z: self.evaluate(units, z), target.z[:, None].expand(-1, count))
        return {"coefficients": solve.linear(target, basis, slopes), "bound": bound}

    def kinks(self, values: Values) -> Tensor:
        bound = values.get("bound", torch.zeros(0, dtype=torch.float64))
        return torch.cat([-bound, bound], dim=-1)

    def moments(self, values: Values, std: float) -> Moments:
        """E G^2 = sum_m A_m^2 / m!, E G'^2 = std^-2 sum_m m A_m^2 / m! with A the coefficients of z -> G(std z)."""
        if "bound" in values:
            return super().moments(values, std)
        A = rescale(values["coefficients"], std)
        k = torch.arange(A.shape[-1], dtype=torch.float64)
        energy = A.square() / (k + 1).lgamma().exp()
        return Moments(A[..., 0], energy.sum(-1), (k * energy).sum(-1) / std**2)


def basis(z: Tensor, count: int) -> list[Tensor]:
    """He_k(z) / k! for k < count by the three-term recurrence, stable at every degree."""
    g = [torch.ones_like(z), z]
    for k in range(2, count):
        g.append((z * g[k - 1] - g[k - 2]) / k)
    return g[:count]


def rescale(a: Tensor, ratio: float) -> Tensor:
    """Coefficients of z -> G(ratio z): A_m = ratio^m sum_j a_{m+2j} tau^j / j!, tau = (ratio^2 - 1) / 2."""
    tau = (ratio**2 - 1) / 2
    n = a.shape[-1]
    columns = [sum(a[..., m + 2 * j] * (tau**j / math.factorial(j)) for j in range((n - 1 - m) // 2 + 1)) for m in range(n)]
    return torch.stack([torch.as_tensor(column) * ratio**m for m, column in enumerate(columns)], dim=-1)
