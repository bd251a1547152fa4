"""The activations without parameters, by torch's own operators; `input_std` does not enter F.

They inherit torch's classes, so that `swap(model, nn.GELU, ...)` finds them in a GPT of ours as in any other model.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from activations.activation import Activation, Option, Values
from activations.engine import working_dtype
from activations.target import gelu


class Fixed(Activation):
    """F = G: no parameters, and the input law does not matter."""

    degrees = ()


class GELU(Fixed, nn.GELU):
    """GPT-2's tanh form x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), or x Phi(x) with `exact=true`.

    Hendrycks and Gimpel, arXiv 1606.08415.
    """

    options: ClassVar = {"exact": Option(False, (True, False))}

    def forward(self, x: Tensor) -> Tensor:
        if self.choices["exact"] or not torch.compiler.is_compiling():
            return F.gelu(x, approximate="none" if self.choices["exact"] else "tanh")
        # The same function as x sigmoid(2 u), u tanh's argument: compiled on a CPU it takes 0.4 of the time (LOG.md).
        z = x.to(working_dtype(x))
        return (z * torch.sigmoid((8 / math.pi) ** 0.5 * (z + 0.044715 * z**3))).to(x.dtype)

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        if self.choices["exact"]:
            return gelu(z)
        return z / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))


class ReLU(Fixed, nn.ReLU):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        return z.clamp(min=0)

    def kinks(self, values: Values) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)


class SiLU(Fixed, nn.SiLU):
    """x sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        return z / (1 + torch.exp(-z))


class ReLUSquared(ReLU):
    """max(x, 0)^2. So et al., Primer, arXiv 2109.08668."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        return z.clamp(min=0).square()
