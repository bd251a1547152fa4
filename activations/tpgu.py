"""Taylor-gated unit: G(z) = z P_n(z), P_n(z) = sum_{k=0..n} (a_k / k!) S_k(b) (z - b)^k.

S_k is the k-th derivative of z -> sigmoid(1.702 z), so it carries 1.702^k.
Zou, Liu and Dai 2025, doi 10.1016/j.neunet.2025.107262: a self-gated unit whose gate is a Taylor polynomial of the sigmoid with
learnable coefficients a and expansion point b, per channel.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from activations.activation import LEARNABLE_OPTIONS, Learnable, Option, Values
from activations.engine import Pointwise
from activations.moments import Moments
from activations.polynomial import polynomial
from activations.target import Target, Weight, gelu

SLOPE = 1.702  # sigmoid(1.702 x) is the logistic that is closest to the normal distribution function
PAPER_SEED = 0


class TPGU(Learnable):
    """`coefficients` a: (channels, n+1), `expansion_point` b: (channels, 1), or (n+1,) and (1,) with per=layer.

    F(0) = 0, so E F'^2 >= E F^2 / s^2 with equality only for +-x: unit gain cannot be had. init=unit: the projection of GELU
    under N(0, 1), scaled to E F^2 = s^2 exactly; the slope gain E F'^2 is then 1.124, 1.099, 1.085 for n = 1, 3, 5 (an even n
    as n - 1). init=paper: a_0 = 1, other a_k from a normal of standard deviation 0.02 truncated at two of them, b = 0: nearly
    x/2, by a generator of its own, so that every layer starts alike; with draw=layer each layer draws its own, as published.
    At init=unit float16 overflows beyond |x|/s = 430, 40, 18 for n = 1, 3, 5.
    """

    options: ClassVar = {
        "degree": Option(5, range(1, 13)),
        **LEARNABLE_OPTIONS,
        "per": Option("channel", LEARNABLE_OPTIONS["per"].allowed),
        "draw": Option("same", ("same", "layer"), silent=True),
    }
    degrees = ("degree",)
    parameter_names = ("coefficients", "expansion_point")
    default_weight = Weight("normal", 1.0)
    coefficients: Tensor
    expansion_point: Tensor
    derivatives: Tensor

    def __init__(self, channels: int, input_std: float = 1.0, layer: int = 0, **options: Any) -> None:
        if options.get("draw") == "layer" and options["init"] != "paper":
            raise ValueError(
                f"tpgu: draw=layer is for init=paper, which draws; init={options['init']} does not, leave draw out"
            )
        if options.get("draw") == "layer" and options["per"] == "model":
            raise ValueError("tpgu: draw=layer gives each layer its own start, and per=model has one for all; leave one out")
        self.layer = layer
        super().__init__(channels, input_std, **options)

    def evaluate(self, values: Values, z: Tensor) -> Tensor:
        a, b = values["coefficients"], values["expansion_point"][..., 0]
        S = [torch.sigmoid(SLOPE * b)]
        S.append(S[0] * (1 - S[0]))
        for k in range(1, a.shape[-1] - 1):  # Leibniz on y' = y - y^2, in units of 1.702
            S.append(S[k] - sum(math.comb(k, j) * S[j] * S[k - j] for j in range(k + 1)))
        P = torch.zeros_like(z)
        for k in reversed(range(a.shape[-1])):
            P = P * (z - b) + a[..., k] * S[k] * (SLOPE**k / math.factorial(k))
        return z * P

    @property
    def has_free_constant(self) -> bool:
        return False

    def initial(self, init: str) -> Values:
        n = self.choices["degree"]
        if init == "paper":
            shape = (n + 1,) if self.rows() == 1 else (self.rows(), n + 1)
            a = torch.empty(shape, dtype=torch.float64)
            generator = torch.Generator().manual_seed(PAPER_SEED + (self.layer if self.choices["draw"] == "layer" else 0))
            torch.nn.init.trunc_normal_(a, std=0.02, a=-0.04, b=0.04, generator=generator)
            a[..., 0] = 1
            return {"coefficients": a, "expansion_point": torch.zeros(1, dtype=torch.float64)}
        values = self.fitted(Target.sample(gelu, Weight("normal", 1.0)))
        return values | {"coefficients": values["coefficients"] * self.moments(values, 1.0).second.rsqrt()}

    def fitted(self, target: Target) -> Values:
        """Linear least squares for a at b = `start(n)`, in value and derivative."""
        n = self.choices["degree"]
        b = torch.tensor([start(n)], dtype=torch.float64)
        units = {"coefficients": torch.eye(n + 1, dtype=torch.float64), "expansion_point": b}
        return {"coefficients": self.combined(target, units), "expansion_point": b}

    def moments(self, values: Values, std: float) -> Moments:
        """E z^{2i} = (2i - 1)!! std^{2i} on the power series of G^2 and G'^2."""
        n = self.choices["degree"]
        gate = self._gate(values["coefficients"], values["expansion_point"], _derivatives(n))
        c = F.pad(gate, (1, 0)) * std ** torch.arange(n + 2).double()  # G(std u)
        slope = c[..., 1:] * torch.arange(1, n + 2).double() / std
        return Moments(*(expectation for expectation in (_mean(c), _mean_square(c), _mean_square(slope))))

    def constants(self) -> Values:
        return {"derivatives": _derivatives(self.choices["degree"])}

    def fast_path(self) -> Pointwise:
        # Computed again in the backward: a hundred numbers a channel are a tenth of x where x has a thousand rows.
        return polynomial(checkpoint(self._powers, use_reentrant=False, preserve_rng_state=False))

    def _powers(self) -> Tensor:
        """F in powers of x, (n+2,) or (channels, n+2)."""
        gate = self._gate(self.coefficients, self.expansion_point, self.derivatives)
        inverse = (1 / self.input_std).expand(gate.shape[-1] - 1).cumprod(0)  # a product that Inductor computes once
        return F.pad(gate * F.pad(inverse, (1, 0), value=1.0), (1, 0))

    @staticmethod
    def _gate(a: Tensor, b: Tensor, derivatives: Tensor) -> Tensor:
        """P_n in powers of z, (..., n+1), from a (..., n+1) and b (..., 1)."""
        t = torch.tanh(SLOPE / 2 * b)
        S = derivatives[:, -1]  # S_k / k!, by Horner's rule in t
        for column in reversed(derivatives.unbind(-1)[:-1]):
            S = torch.addcmul(column, S, t)
        c = a * S
        gate = c[..., -1:]  # c_n, then (z - b) times what there is plus c_k: a sixth of the time of powers and binomials
        for k in range(a.shape[-1] - 2, -1, -1):
            gate = torch.cat([c[..., k : k + 1], gate], dim=-1) - b * F.pad(gate, (0, 1))
        return gate


def start(n: int) -> float:
    """Where b begins: at 0 every even S_k vanishes, and with it the gradient of a_k.

    The smallest of |S_k(b)| / max |S_k|, k <= n, is 0.44 or more at 0.25 up to degree 8, but 0.2 at 10 and 0.04 at 12; at 0.203
    and 0.178, the best for these two, it is 0.43 and 0.38.
    """
    return 0.25 if n <= 8 else 0.203 if n <= 10 else 0.178


def _derivatives(n: int) -> Tensor:
    """(n+1, n+2): S_k(b) / k! = sum_m D_km t^m with t = tanh(0.851 b), from sigmoid = (1 + t) / 2 and t' = 0.851 (1 - t^2)."""
    p = torch.zeros(n + 3, dtype=torch.float64)
    p[:2] = 0.5
    rows = [p]
    powers = torch.arange(n + 3, dtype=torch.float64)
    for k in range(1, n + 1):
        slope = (powers * p).roll(-1)
        p = SLOPE / (2 * k) * (slope - slope.roll(2))
        rows.append(p)
    return torch.stack(rows)[:, : n + 2]


def _mean(c: Tensor) -> Tensor:
    """E sum_j c_j u^j, u ~ N(0, 1)."""
    even = torch.tensor([math.prod(range(j - 1, 0, -2)) * (j % 2 == 0) for j in range(c.shape[-1])], dtype=torch.float64)
    return (c * even).sum(-1)


def _mean_square(c: Tensor) -> Tensor:
    k = c.shape[-1]
    moment = torch.tensor([math.prod(range(j - 1, 0, -2)) * (j % 2 == 0) for j in range(2 * k)], dtype=torch.float64)
    i = torch.arange(k)
    return (c[..., :, None] * c[..., None, :] * moment[i[:, None] + i]).sum((-2, -1))
