"""Pictures have one panel an activation."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
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


def test_a_picture_of_few_colours_looks_the_same_and_is_smaller() -> None:
    figure = Figure(figsize=(6, 3), dpi=200)
    axis = figure.subplots()
    for index in range(11):
        axis.plot([0, 1], [0, index], color=f"C{index % 10}")
        axis.fill_between([0, 1], [0, index], [1, index + 1], color=f"C{index % 10}", alpha=0.2)
    full = io.BytesIO()
    figure.savefig(full, format="png")
    small = plot.png(figure)
    pictures = [np.asarray(Image.open(png).convert("RGB"), dtype=float) for png in (full, io.BytesIO(small))]
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0] - pictures[1]).mean() < 2  # of 255
    assert len(small) < 0.6 * len(full.getvalue())
