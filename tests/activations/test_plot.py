"""Pictures have one panel an activation."""

import pytest
import torch
from torch import nn

import activations
from activations import plot


@pytest.mark.parametrize("with_inputs", [False, True])
def test_draws_every_activation(with_inputs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleList(activations.build(spec, 8, 0.3) for spec in ("hermite", "tpgu", "gelu", "rational", "xielu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    inputs = {"0": torch.randn(10, 8, generator=torch.Generator().manual_seed(0))} if with_inputs else None
    panels = []
    monkeypatch.setattr(plot, "_panel", lambda axis, module, sample: panels.append(module) or axis.plot([0], [0], label="x"))
    assert plot.shapes(model, inputs).startswith(b"\x89PNG")
    assert panels == list(model)
    monkeypatch.undo()
    assert plot.shapes(model, inputs).startswith(b"\x89PNG")


def test_a_model_without_activations_of_ours_is_named() -> None:
    with pytest.raises(ValueError, match=r"Linear has no activation of ours; put one in by activations\.swap"):
        plot.shapes(nn.Linear(2, 2))
