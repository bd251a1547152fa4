"""Why does a cosine, Fourier of degree 1, learn faster at first than GELU? Each class here keeps a part of it.

    python compare.py config/study.py --seeds 3 --activations gelu fourier:degree=1 fourier:degree=1,learnable=false \
        examples/parts_of_a_cosine.py:UnitGELU,learnable=false examples/parts_of_a_cosine.py:Odd,learnable=false ...

Fourier starts as a_0 + a cos(z - pi/4), with unit gain: E F(x)^2 = s^2 and E F'(x)^2 = 1 under N(0, s^2).
The scale and the shift around their formula give all classes unit gain too. An explanation is refuted in one of two ways:
a part that lacks it is as good as the whole, or a part that is nothing else is not.
"""

import math

import torch
from torch import Tensor

import activations


class UnitGELU(activations.Parametric):
    """The gain alone: GELU's shape with the cosine's second moments of value and slope."""

    start = {}  # noqa: RUF012 as every family's: read, never changed

    def formula(self, z: Tensor) -> Tensor:
        return torch.nn.functional.gelu(z)


class Even(UnitGELU):
    """cos z: no slope at the origin, and a function of |z| alone."""

    def formula(self, z: Tensor) -> Tensor:
        return torch.cos(z)


class Odd(UnitGELU):
    """sin z: the largest slope at the origin, and nothing even."""

    def formula(self, z: Tensor) -> Tensor:
        return torch.sin(z)


class OnePeriod(UnitGELU):
    """cos(z - pi/4) within one period, constant outside: it does not repeat."""

    def formula(self, z: Tensor) -> Tensor:
        return torch.cos((z - math.pi / 4).clamp(-math.pi, math.pi))


class Rising(UnitGELU):
    """The rising half of that period, constant outside: monotone and bounded."""

    def formula(self, z: Tensor) -> Tensor:
        return torch.cos((z - math.pi / 4).clamp(-math.pi, 0))


if __name__ == "__main__":
    for part in (UnitGELU, Even, Odd, OnePeriod, Rising):
        act = part(channels=1, learnable=False)
        print(act, activations.gains(act))
