"""A family written in a test: one class, one registry line, and the whole suite passes."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.moments import unit_gain
from activations.target import Target, Weight


class Toy(Learnable):
    """G(z) = c_0 + c_1 z + sum_{k=2..n} c_k cos(k z / 4)."""

    options: ClassVar = {"degree": Option(2, range(1, 4)), **LEARNABLE_OPTIONS}
    degrees = ("degree",)
    parameter_names = ("weights",)
    default_weight = Weight("uniform", 4.0)
    weights: Tensor

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        z, c = wide / self.input_std, self.weights.to(wide.dtype)
        y = c[..., 0] + c[..., 1] * z
        for k in range(2, c.shape[-1]):
            y = y + c[..., k] * torch.cos((k * z / 4).clamp(-1e30, 1e30))
        return (self.input_std * y).to(x.dtype)

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        c = values["weights"]
        y = c[..., 0] + c[..., 1] * z
        for k in range(2, c.shape[-1]):
            y = y + c[..., k] * (1 - 2 * torch.sin(k * z / 8) ** 2)
        return y

    def initial(self, init: str) -> Values:
        h = torch.ones(self.choices["degree"] + 1, dtype=torch.float64)
        h[0] = 0
        if init == "paper":
            return {"weights": h / math.e}
        scale, shift = unit_gain(self.moments({"weights": h}, 1.0))
        h = scale * h
        h[0] = shift
        return {"weights": h}

    def fitted(self, target: Target) -> Values:
        z, k = target.z[:, None], torch.arange(2, self.choices["degree"] + 1)
        basis = torch.cat([z**0, z, torch.cos(k * z / 4)], dim=1)
        slopes = torch.cat([0 * z, z**0, -k / 4 * torch.sin(k * z / 4)], dim=1)
        return {"weights": solve.linear(target, basis, slopes)}
