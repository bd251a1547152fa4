"""Families of a few lines: the one that docs/activations.md shows, as it stands there, and others in its manner."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import activations

ROOT = Path(__file__).parents[2]


def shown(document: str, heading: str) -> str:
    """The first Python block under a heading of a document; empty where it has no such heading."""
    section = (ROOT / document).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return section.partition("```python\n")[2].partition("```")[0]


_namespace: dict[str, Any] = {"__name__": __name__}
exec(shown("docs/activations.md", "Add one"), _namespace)
Swish: type[activations.Parametric] = _namespace["Swish"]


class PReLU(activations.Parametric):
    """max(z, 0) + slope min(z, 0)."""

    start = {"slope": 0.25}  # noqa: RUF012

    def formula(self, z: Tensor, slope: Tensor) -> Tensor:
        return z.clamp(min=0) + slope * z.clamp(max=0)


class Softplus(activations.Parametric):
    """log(1 + exp(b (z - t))) / b."""

    start = {"sharpness": 1.0, "threshold": 0.0}  # noqa: RUF012

    def formula(self, z: Tensor, sharpness: Tensor, threshold: Tensor) -> Tensor:
        u = sharpness * (z - threshold)
        return torch.logaddexp(u, torch.zeros_like(u)) / sharpness


class HardTanh(activations.Parametric):
    """z between -limit and limit, constant beyond: two kinks, nowhere stated."""

    start = {"limit": 1.3}  # noqa: RUF012

    def formula(self, z: Tensor, limit: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(z, -limit), limit)


class Odd(activations.Parametric):
    """w_0 z + w_1 tanh(z): several numbers in one parameter, and no constant."""

    start = {"weights": (0.5, 1.0)}  # noqa: RUF012
    adds = ("scale",)

    def formula(self, z: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        return weights[0] * z + weights[1] * torch.tanh(z)
