"""Swish and PReLU start as the functions of their papers, at unit gain; a `swish` of transformers stays SiLU."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import activations
from config.schema import GPTConfig
from model import GPT
from pretrained import folder


@pytest.mark.parametrize(
    ("spec", "function"), [("swish", F.silu), ("prelu", lambda z: F.prelu(z, torch.tensor([0.25]).double()))]
)
def test_init_is_the_published_function_up_to_scale_and_shift(spec: str, function: object) -> None:
    assert callable(function)
    z = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]
    torch.testing.assert_close(activations.build(f"{spec}:init=paper", 1).double()(z), function(z))
    scaled = activations.build(spec, 1, 0.5).double()
    torch.testing.assert_close(scaled(0.5 * z), 0.5 * (scaled.scale * function(z) + scaled.shift), rtol=1e-6, atol=1e-7)


def test_the_slope_is_learned() -> None:
    swish, prelu = (activations.build(f"{name}:init=paper", 1).double() for name in ("swish", "prelu"))
    swish.beta.data.fill_(3.0)
    prelu.slope.data.fill_(-0.5)
    z = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None]
    torch.testing.assert_close(swish(z), z * torch.sigmoid(3 * z))
    torch.testing.assert_close(prelu(z), torch.where(z > 0, z, -0.5 * z))


def test_the_swish_of_transformers_is_silu_and_ours_comes_back_as_ours(tmp_path: Path) -> None:
    """A config.json holds our spec with its options, which no name of transformers has."""
    assert folder.ACTIVATIONS["swish"] == "silu"
    assert folder._activation({"activation_function": "swish"}) == "silu"
    gpt = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=16, block_size=8, vocab_size=257, activation="swish"))
    gpt.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert again.config.activation == gpt.config.activation == activations.registry.check("swish")
