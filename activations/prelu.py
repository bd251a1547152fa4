"""PReLU: h(z) = max(z, 0) + slope min(z, 0). He et al., Delving deep into rectifiers, arXiv 1502.01852, equation 1."""

from typing import ClassVar

import torch
from torch import Tensor

from activations.activation import Values
from activations.parametric import Parametric


class PReLU(Parametric):
    """G(z) = shift + scale h(z), slope = 0.25 at first, as published."""

    start: ClassVar = {"slope": 0.25}

    def formula(self, z: Tensor, slope: Tensor) -> Tensor:
        return torch.relu(z) + slope * z.clamp(max=0)

    def kinks(self, values: Values) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)
