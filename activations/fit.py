"""Match an activation to any function, in value and derivative: deterministic, in float64, in memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from activations.activation import Learnable
from activations.moments import differentiate
from activations.target import Target, Weight

REPORTED = 3.0  # errors are reported on |x| <= REPORTED
TAILS = (-6.0, 6.0)


@dataclass(frozen=True)
class FitReport:
    """How well F matches f: errors of value and derivative on |x| <= 3, and both functions in the tails, (x, F(x), f(x))."""

    weight: Weight
    value_rms: float
    value_max: float
    slope_rms: float
    slope_max: float
    tails: tuple[tuple[float, float, float], ...]

    def __str__(self) -> str:
        tails = ", ".join(f"F({x:g}) = {found:.3g} (target {wanted:.3g})" for x, found, wanted in self.tails)
        return (
            f"fit under {self.weight}; on |x| <= {REPORTED:g}: value RMS {self.value_rms:.2g}, max {self.value_max:.2g}; "
            f"derivative RMS {self.slope_rms:.2g}, max {self.slope_max:.2g}; tails: {tails}"
        )


def fit(module: nn.Module, target: Callable[[Tensor], Tensor], std: float | None = None) -> FitReport:
    """Set the parameters of `module`, in place, so that F approximates `target` (elementwise, differentiable, float64 tensors).

    std: the weight is x ~ N(0, std^2), the measured law of the inputs where there is one; None: the family's default weight.
    Every row (channel) gets the same values. ValueError for a module without parameters or a target that is not finite.
    """
    if not isinstance(module, Learnable):
        raise ValueError(
            f"fit needs a learnable activation, not {type(module).__name__}; build one, for example 'hermite:degree=8'"
        )
    if std is not None and not (math.isfinite(std) and std > 0):
        raise ValueError(f"fit: std={std} is not a standard deviation; give a finite number above 0, or None")
    weight = module.default_weight if std is None else Weight("normal", float(std))
    module.set_values(module.fitted(Target.sample(target, weight, unit=float(module.unit))))
    module.fitted_range.fill_(3 * weight.width if weight.law == "normal" else weight.width)
    return report(module, target, weight)


def report(module: Learnable, target: Callable[[Tensor], Tensor], weight: Weight) -> FitReport:
    """Compare `module` as it is with `target`; `weight` is only noted. Several rows are compared by their first."""
    values = {name: value[0] if value.dim() == 2 else value for name, value in module.values().items()}
    s = float(module.unit)
    x = torch.linspace(-REPORTED, REPORTED, 1201, dtype=torch.float64)[:, None]
    found, found_slope = differentiate(lambda u: s * module.evaluate(values, u / s), x)
    wanted, wanted_slope = differentiate(target, x)
    error, slope_error = (found - wanted).abs(), (found_slope - wanted_slope).abs()
    ends = torch.tensor(TAILS, dtype=torch.float64)
    return FitReport(
        weight=weight,
        value_rms=_rms(error),
        value_max=float(error.max()),
        slope_rms=_rms(slope_error),
        slope_max=float(slope_error.max()),
        tails=tuple(zip(TAILS, (s * module.evaluate(values, ends / s)).tolist(), target(ends).tolist(), strict=True)),
    )


def _rms(error: Tensor) -> float:
    """Over |x| <= 3, by the trapezoid rule: half a weight for the ends, where the errors are largest."""
    return float((torch.trapezoid(error.square(), dx=1.0, dim=0) / (len(error) - 1)).sqrt())
