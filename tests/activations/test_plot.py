"""Pictures are written whole, one panel an activation."""

from pathlib import Path

import pytest
import torch
from torch import nn

import activations
from activations import plot


@pytest.mark.parametrize("with_inputs", [False, True])
def test_draws_every_activation(tmp_path: Path, with_inputs: bool) -> None:
    model = nn.ModuleList(activations.build(spec, 8, 0.3) for spec in ("hermite", "tpgu", "gelu", "rational", "xielu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    inputs = {"0": torch.randn(10, 8, generator=torch.Generator().manual_seed(0))} if with_inputs else None
    assert plot.shapes(model, tmp_path / "shapes.png", inputs) == 5
    assert (tmp_path / "shapes.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["shapes.png"]


def test_a_model_without_activations_of_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Linear has no activation of ours; put one in by activations\.swap"):
        plot.shapes(nn.Linear(2, 2), tmp_path / "shapes.png")
