"""Swapping activations in our GPT, transformers' GPT-2 and ConvNeXt, and plain module trees."""

import pytest
import torch
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextForImageClassification, GPT2Config, GPT2LMHeadModel
from transformers.activations import GELUActivation, NewGELUActivation

import activations
from activations import telemetry
from activations.activation import Activation
from config.schema import GPTConfig
from model import GPT


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 64, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()


def convnext() -> ConvNextForImageClassification:
    torch.manual_seed(0)
    return ConvNextForImageClassification(
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=2, image_size=16, patch_size=2)
    )


def swapped(model: nn.Module) -> list[Activation]:
    return [module for module in model.modules() if isinstance(module, Activation)]


def test_transformers_gpt2_keeps_its_logits_when_fitted() -> None:
    model, tokens = gpt2(), torch.arange(32)[None]
    before = model(tokens).logits
    stds = telemetry.input_stds(model, tokens, NewGELUActivation)
    assert activations.swap(model, NewGELUActivation, "hermite:degree=8,init=fit-gelu,per=channel", stds) == 2
    assert [module.channels for module in swapped(model)] == [128, 128], "Conv1D's nf, not the projection's"
    assert [float(module.input_std) for module in swapped(model)] == pytest.approx(list(stds.values()))
    assert (model(tokens).logits - before).abs().max() < 1e-3 * before.abs().max()


def test_our_gpt_is_found_by_torch_class_and_swaps_back() -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64)).eval()
    tokens = torch.arange(16)[None]
    before = model(tokens)
    assert activations.swap(model, nn.GELU, "rational") == 2
    assert [module.channels for module in swapped(model)] == [128, 128]
    assert activations.swap(model, Activation, "gelu") == 2
    assert torch.equal(before, model(tokens))


@pytest.mark.parametrize("spec", ["hermite", "fourier", "tropical", "tpgu"])
def test_convnext_learns_with_every_family_of_the_papers(spec: str) -> None:
    model = convnext()
    assert activations.swap(model, GELUActivation, spec) == 2
    assert [module.channels for module in swapped(model)] == [32, 64]
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(32) % 2
    stripes = torch.linspace(0, 12.0, 16).sin()
    images = torch.where(labels[:, None, None] == 0, stripes[None, :, None], stripes[None, None, :])[:, None].expand(
        -1, 3, -1, -1
    )
    images = images + 0.3 * torch.randn(32, 3, 16, 16, generator=generator)
    optimizer = torch.optim.AdamW(activations.parameter_groups(model, lr=3e-3, weight_decay=0.05))
    losses = []
    for _ in range(12):
        loss = model(pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for module in swapped(model) for p in module.parameters())


class Gated(nn.Module):
    """gate, up and down with the activation registered last, as in Llama's MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.act = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 4), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act(self.gate(x)) * self.up(x))
        return y


@pytest.mark.parametrize(
    ("model", "kind", "channels"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU()), nn.ReLU, [6, 5]),
        (nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), nn.Dropout()), nn.Linear(6, 2)), nn.ReLU, [6]),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 6)), nn.ReLU, [4]),
        (nn.ModuleDict({"dense": nn.Linear(4, 7), "act": nn.ReLU()}), nn.ReLU, [7]),
        (Gated(), nn.SiLU, [12]),
    ],
)
def test_channels_come_from_the_neighbouring_layer(model: nn.Module, kind: type, channels: list[int]) -> None:
    activations.swap(model, kind, "hermite:per=channel")
    found = [module.channels for module in swapped(model)]
    assert found[: len(channels)] == channels


def test_shared_modules_stay_shared_and_mode_and_dtype_are_kept() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act).double().eval()
    assert activations.swap(model, nn.ReLU, "hermite") == 1
    assert model[1] is model[3]
    assert not model[1].training
    assert model[1].coefficients.dtype == torch.float64
    assert model(torch.ones(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_without_measured_inputs_the_default_weight_is_used() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU())
    activations.swap(model, nn.GELU, "fourier:init=fit-gelu")
    assert float(model[1].fitted_range) == 6


def test_errors_leave_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Flatten(), nn.Mish())
    for old, spec, stds, message in (
        (nn.ReLU, "hermite", None, r"no ReLU; its activations are: .*GELU.*Mish"),
        (nn.GELU, "hermit", None, "did you mean 'hermite'"),
        (nn.GELU, "rational:groups=5", None, "do not divide 6 channels"),
        ((nn.GELU, nn.Mish), "hermite", {"1": 0.3}, "no entry for '3'"),
    ):
        with pytest.raises(ValueError, match=message):
            activations.swap(model, old, spec, stds)
        assert type(model[1]) is nn.GELU
    with pytest.raises(ValueError, match="per=layer"):
        activations.swap(nn.Sequential(nn.GELU()), nn.GELU, "tpgu")
