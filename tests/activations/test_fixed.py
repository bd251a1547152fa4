"""The fixed activations are torch's, and GPT-2's GELU is the tanh form."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import NewGELUActivation

import activations


@pytest.mark.parametrize(
    ("spec", "function"),
    [
        ("gelu", NewGELUActivation()),
        ("gelu:exact=true", F.gelu),
        ("relu", F.relu),
        ("silu", F.silu),
        ("relu_squared", lambda x: F.relu(x) ** 2),
    ],
)
def test_values(spec: str, function: object) -> None:
    assert callable(function)
    x = torch.linspace(-6, 6, 200).reshape(25, 8)
    torch.testing.assert_close(activations.build(spec, 8)(x), function(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("spec", "kind"), [("gelu", nn.GELU), ("relu", nn.ReLU), ("silu", nn.SiLU)])
def test_they_are_torchs_classes_and_add_nothing_to_a_checkpoint(spec: str, kind: type) -> None:
    module = activations.build(spec, 8, input_std=0.3)
    assert isinstance(module, kind)
    assert not module.state_dict()
    assert float(module.input_std) == pytest.approx(0.3)
