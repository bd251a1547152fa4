"""Swish with a learnable slope: h(z) = z sigmoid(beta z). Ramachandran, Zoph and Le, Searching for activation functions,
arXiv 1710.05941.
"""

from typing import ClassVar

import torch
from torch import Tensor

from activations.parametric import Parametric


class Swish(Parametric):
    """G(z) = shift + scale h(z), beta = 1 at first: SiLU, which transformers also calls swish, at unit gain."""

    start: ClassVar = {"beta": 1.0}

    def formula(self, z: Tensor, beta: Tensor) -> Tensor:
        return z * torch.sigmoid(beta * z)
