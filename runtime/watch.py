"""What a person should hear of while a run goes on: loss that jumps, activation coefficients that run away.

It only tells: it draws no numbers, writes no rows, and a resumed run, which begins to watch anew, stays the same run.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, stdev

from torch import nn

from activations import Activation

_WINDOW = 20  # training rows that a row is compared with
_FEWEST = 5
_SPIKE = 6.0  # standard deviations above their mean
_LEAST = 0.02  # of the mean: what counts as a standard deviation at least, where the loss has become flat
_RUNAWAY = 30.0  # times the largest coefficient that the tensor began with, or times one


@dataclass
class Watch:
    """Watches the activations of a model whose coefficients are as they begin."""

    model: nn.Module
    limits: dict[str, float] = field(default_factory=dict)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))

    def __post_init__(self) -> None:
        for name, parameter in coefficients(self.model).items():
            self.limits[name] = _RUNAWAY * max(1.0, float(parameter.detach().abs().max()))

    def report(self, step: int, loss: float) -> list[str]:
        """Lines to say after `step`, whose training row has this loss; each coefficient is reported once."""
        lines = []
        if math.isfinite(loss):
            if len(self._recent) >= _FEWEST:
                mean = fmean(self._recent)
                spread = max(stdev(self._recent), _LEAST * abs(mean))
                if loss > mean + _SPIKE * spread:
                    lines.append(f"step {step}: loss spike, {loss:.4f} after a mean of {mean:.4f} (+- {spread:.4f})")
            self._recent.append(loss)
        for name, parameter in coefficients(self.model).items():
            largest = float(parameter.detach().abs().max())
            if name in self.limits and not largest <= self.limits[name]:
                lines.append(f"step {step}: coefficient {name} runs away: {largest:.4g}, above {self.limits.pop(name):.4g}")
        return lines


def coefficients(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every activation's parameters by their names in the model."""
    found = {}
    for module_name, module in model.named_modules():
        if isinstance(module, Activation):
            found.update({f"{module_name}.{name}": parameter for name, parameter in module.named_parameters()})
    return found
