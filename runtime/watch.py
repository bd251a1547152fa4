"""What a person should hear of while a run goes on: loss that jumps, coefficients that run away, weights without a gradient.

It only tells: it draws no numbers, writes no rows, and a resumed run, which begins to watch anew, stays the same run.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch
from torch import nn

from activations import Activation
from model import MLP
from runtime.sharding import whole

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
    _norms: dict[str, dict[str, float]] = field(default_factory=dict)
    _reported: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for name, parameter in coefficients(self.model).items():
            self.limits[name] = _RUNAWAY * max(1.0, float(parameter.detach().abs().max()))

    def note_gradients(self) -> None:
        """Take down how large the MLPs' gradients are; call it between a training step's backward pass and their clearing."""
        self._norms = mlp_gradients(self.model)

    def input_gradients(self) -> dict[str, float]:
        """Telemetry "<activation>.input_gradient": norm of the gradient of the weights before it over that of those after it.

        From the last step that was noted, so by the code that trains, compiled or not. 0: the activation passes nothing back.
        """
        ratios = {}
        for mlp, norms in self._norms.items():
            before = norms["c_gate" if "c_gate" in norms else "c_fc"]
            ratios[f"{mlp}.act.input_gradient"] = before / norms["c_proj"] if norms["c_proj"] else 0.0
        return ratios

    def report(self, step: int, loss: float) -> list[str]:
        """Lines to say after `step`, whose training row has this loss; each coefficient and each layer is reported once."""
        lines = []
        dead = [
            f"{mlp}.{part}"
            for mlp, norms in self._norms.items()
            for part, norm in norms.items()
            if norm == 0 and f"{mlp}.{part}" not in self._reported
        ]
        if dead:
            self._reported.update(dead)
            lines.append(f"step {step}: no gradient reaches the weights of {', '.join(dead)}: they do not learn")
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


def mlp_gradients(model: nn.Module) -> dict[str, dict[str, float]]:
    """MLP by name -> matrix by name -> norm of the gradient of its weights as it is now; 0 where there is none."""
    weights = [
        (name, part, layer.weight)
        for name, mlp in model.named_modules()
        if isinstance(mlp, MLP)
        for part, layer in mlp.named_children()
        if isinstance(layer, nn.Linear)
    ]
    norms = [whole(w.new_zeros(()) if w.grad is None else torch.linalg.vector_norm(w.grad)) for _, _, w in weights]
    found: dict[str, dict[str, float]] = {}
    for (name, part, _), norm in zip(weights, torch.stack(norms).tolist() if norms else [], strict=True):  # one wait
        found.setdefault(name, {})[part] = norm
    return found


def coefficients(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every activation's parameters by their names in the model."""
    found = {}
    for module_name, module in model.named_modules():
        if isinstance(module, Activation):
            found.update({f"{module_name}.{name}": parameter for name, parameter in module.named_parameters()})
    return found
