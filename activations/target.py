"""What a fit aims at: a function and its derivative on nodes, with the weight of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from activations.moments import Z_MAX, differentiate, gauss_legendre


class Weight(NamedTuple):
    """Which inputs a fit cares for: x ~ N(0, width^2) or x ~ U[-width, width]."""

    law: Literal["normal", "uniform"]
    width: float

    def __str__(self) -> str:
        return f"N(0, {self.width:g}^2)" if self.law == "normal" else f"U[-{self.width:g}, {self.width:g}]"


@dataclass(frozen=True)
class Target:
    """g(z) = f(s z) / s on N nodes, all (N,) float64: a family fits its G to it and never sees s.

    `weight` sums to 1. The misfit is sum weight [(G - g)^2 + slope_scale^2 (G' - g')^2]; `slope_scale` makes slopes lengths:
    the width of a normal law, one unit of x for a uniform one. `radius` is where the nodes matter: the range, or 4 standard
    deviations.
    """

    z: Tensor
    value: Tensor
    slope: Tensor
    weight: Tensor
    slope_scale: float
    radius: float
    law: Weight

    @classmethod
    def sample(cls, function: Callable[[Tensor], Tensor], law: Weight, unit: float = 1.0) -> "Target":
        """`function`: elementwise, differentiable by autograd, of float64 tensors. `unit`: s, the standard deviation of z's
        unit.
        """
        reach = Z_MAX * law.width if law.law == "normal" else law.width
        nodes, weights = gauss_legendre(16)
        edges = torch.linspace(-reach, reach, 25, dtype=torch.float64)  # 0, where most activations have their kink, is an edge
        half, middle = (edges[1:] - edges[:-1]) / 2, (edges[1:] + edges[:-1]) / 2
        x = (middle[:, None] + half[:, None] * nodes).flatten()
        weight = (half[:, None] * weights).flatten()
        if law.law == "normal":
            weight = weight * torch.exp(-(x / law.width).square() / 2)
        value, slope = (column.flatten() for column in differentiate(function, x[:, None]))
        if not (value.isfinite().all() and slope.isfinite().all()):
            raise ValueError(
                f"fit: the target is not finite on {law}; give a function that is finite there with its derivative"
            )
        length = law.width if law.law == "normal" else 1.0
        radius = 4 * law.width if law.law == "normal" else law.width
        return cls(x / unit, value / unit, slope, weight / weight.sum(), length / unit, radius / unit, law)


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), the exact form."""
    y: Tensor = x * torch.special.ndtr(x)
    return y


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    y: Tensor = x * torch.sigmoid(x)
    return y


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "silu": silu, "relu": torch.relu}  # init=fit-<name>
