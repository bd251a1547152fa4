"""xIELU: G(z) = alpha_p z^2 + beta z for z > 0, alpha_n (e^z - 1 - z) + beta z otherwise, alpha_p > 0, alpha_n > beta.

Huang and Schlag, Deriving activation functions using integration, arXiv 2411.13010: the integral of a trainable ELU.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from activations import solve
from activations.activation import LEARNABLE_OPTIONS, Learnable, Values
from activations.engine import Columns, Kernel, Pointwise, Total
from activations.target import Target, Weight

BETA = 0.5  # slope at 0, fixed in the paper
PAPER_ALPHA = 0.8


class XIELU(Learnable):
    """`alpha_p`, `alpha_n`: (1,) or (channels, 1), before the softplus that keeps alpha_p > 0 and alpha_n > beta.

    F(0) = 0, so unit gain cannot be had. init=unit: the published alpha_n, and alpha_p such that E F^2 = s^2 exactly; the slope
    gain E F'^2 is then 1.159. init=paper: both 0.8. It grows as alpha_p x^2 / s: float16 overflows beyond x/s = 348 at
    init=unit.
    """

    options: ClassVar = LEARNABLE_OPTIONS
    degrees = ()
    parameter_names = ("alpha_p", "alpha_n")
    default_weight = Weight("normal", 1.0)
    alpha_p: Tensor
    alpha_n: Tensor
    beta: Tensor

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        raw = (values[name][..., 0] for name in self.parameter_names)
        alpha_p, excess = (torch.logaddexp(value, torch.zeros_like(value)) for value in raw)  # excess: alpha_n - beta > 0
        positive, negative = torch.relu(z), z.clamp(max=0)
        # Written so that no infinities are subtracted; at 0 relu has slope 0 and clamp 1, together beta.
        return positive * (alpha_p * positive + BETA) + ((BETA + excess) * torch.expm1(negative) - excess * negative)

    @property
    def has_free_constant(self) -> bool:
        return False

    def initial(self, init: str) -> Values:
        published = _values(PAPER_ALPHA, PAPER_ALPHA)
        if init == "paper":
            return published
        # E G^2 = alpha_p^2 E z_+^4 + 2 alpha_p beta E z_+^3 + rest, a quadratic in alpha_p.
        a, b = 1.5, 2 * BETA * math.sqrt(2 / math.pi)
        rest = float(self.moments(published, 1.0).second) - a * PAPER_ALPHA**2 - b * PAPER_ALPHA
        return _values((-b + math.sqrt(b**2 - 4 * a * (rest - 1))) / (2 * a), PAPER_ALPHA)

    def fitted(self, target: Target) -> Values:
        """G is linear in alpha_p and alpha_n: least squares in value and derivative, kept above 0 and beta."""
        z = target.z[:, None]
        positive, negative = z.clamp(min=0), z.clamp(max=0)
        basis = torch.cat([positive**2, torch.expm1(negative) - negative], dim=1)
        slopes = torch.cat([2 * positive, torch.expm1(negative)], dim=1)
        rest = Target(**vars(target) | {"value": target.value - BETA * target.z, "slope": target.slope - BETA})
        alpha_p, alpha_n = solve.linear(rest, basis, slopes).tolist()
        return _values(max(alpha_p, 1e-3), max(alpha_n, BETA + 1e-3))

    def kinks(self, values: Values) -> Tensor:
        return torch.zeros(1, dtype=torch.float64)

    def constants(self) -> Values:
        return {"beta": torch.tensor([BETA], dtype=torch.float64)}

    def fast_path(self) -> Pointwise:
        return Pointwise(KERNEL, F.softplus(self.alpha_p), self.beta + F.softplus(self.alpha_n), self.beta, self.input_std)


def _values(alpha_p: float, alpha_n: float) -> Values:
    """The parameters before the softplus."""
    raw = (math.log(math.expm1(alpha_p)), math.log(math.expm1(alpha_n - BETA)))
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in zip(("alpha_p", "alpha_n"), raw, strict=True)}


# The fast path.


def _prepare(alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, std: Tensor) -> tuple[Tensor, ...]:
    """With p = max(x, 0), n = min(x, 0): F = p (p alpha_p/std + beta) + alpha_n std expm1(n/std) - (alpha_n - beta) n."""
    return alpha_p / std, alpha_n * std, alpha_n, beta - alpha_n, beta, 1 / std


def _value(z: Tensor, out: Tensor | None, *columns: Columns) -> Tensor:
    (a_p,), (height,), _, (drop,), (beta,), (inverse,) = columns
    positive, negative = z.clamp(min=0), torch.clamp(z, max=0, out=out)
    y = positive.mul(a_p).add_(beta).mul_(positive)
    return y.addcmul_(drop, negative).addcmul_(height, torch.expm1(negative * inverse))


def _gradients(z: Tensor, g: Tensor, total: Total, out: Tensor | None, *columns: Columns) -> tuple[Tensor, list[Tensor]]:
    """Sums: g p^2, g (std e - (x - p)), g x."""
    (a_p,), _, (a_n,), _, (beta,), (inverse,) = columns
    positive, negative = z.clamp(min=0), z.clamp(max=0)
    tail = torch.expm1(negative * inverse)
    dz = torch.mul(positive, 2 * a_p, out=out).addcmul_(a_n, tail).add_(beta).mul_(g)
    return dz, [total(positive.mul_(positive), g), total(tail.div_(inverse).sub_(negative), g), total(g, z)]


def _collect(sums: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, std: Tensor) -> tuple[Tensor | None, ...]:
    p, n, b = sums.split(1, dim=1)
    return p / std, n, b, None


KERNEL = Kernel(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect)
