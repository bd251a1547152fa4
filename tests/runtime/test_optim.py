"""The schedule and the groups are nanoGPT's, but for the activation's own."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config.tiny import config as tiny
from model import GPT
from runtime.optim import adamw, learning_rate, set_learning_rate


@given(st.integers(0, 2000), st.integers(0, 300), st.integers(1, 1500))
def test_schedule_is_bounded_and_meets_its_ends(step: int, warmup: int, decay: int) -> None:
    config = dataclasses.replace(tiny, warmup_steps=warmup, lr_decay_steps=decay, max_steps=2000)
    rate = learning_rate(step, config)
    assert 0 < rate <= config.learning_rate
    if step >= max(warmup, decay):
        assert rate == config.min_lr
    if warmup <= step < decay:
        assert config.min_lr < rate
        assert rate >= learning_rate(step + 1, config)


def test_schedule_has_nanogpt_s_values() -> None:
    config = dataclasses.replace(
        tiny, learning_rate=6e-4, min_lr=6e-5, warmup_steps=2000, lr_decay_steps=600_000, max_steps=600_000
    )
    assert learning_rate(0, config) == pytest.approx(6e-4 / 2001)
    assert learning_rate(2000, config) == pytest.approx(6e-4)
    assert learning_rate(301_000, config) == pytest.approx(6e-5 + 0.5 * (6e-4 - 6e-5))
    assert learning_rate(600_000, config) == 6e-5


@pytest.mark.parametrize("activation", ["gelu", "hermite:degree=3", "hermite:degree=3,per=channel"])
def test_decay_is_on_matrices_and_embeddings_alone(activation: str) -> None:
    config = dataclasses.replace(tiny, activation=activation, activation_lr_scale=0.5)
    model = GPT(config.gpt(257))
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = adamw(model, config, torch.device("cpu"))
    set_learning_rate(optimizer, 1e-3)
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            coefficient = ".act." in name
            assert group["lr"] == (0.5e-3 if coefficient else 1e-3)
            assert group["weight_decay"] == (config.weight_decay if parameter.dim() >= 2 and not coefficient else 0.0), name
    assert sorted(seen) == sorted(names.values())


def test_one_step_is_the_written_out_adamw() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    before, grad = model.weight.detach().clone(), torch.randn(2, 3)
    optimizer = adamw(model, tiny, torch.device("cpu"))
    set_learning_rate(optimizer, 1e-2)
    model.weight.grad, model.bias.grad = grad.clone(), torch.zeros(2)
    optimizer.step()
    m, v = (1 - tiny.beta1) * grad, (1 - tiny.beta2) * grad**2
    update = (m / (1 - tiny.beta1)) / (torch.sqrt(v / (1 - tiny.beta2)) + 1e-8)
    expected = before * (1 - 1e-2 * tiny.weight_decay) - 1e-2 * update
    assert torch.allclose(model.weight, expected, atol=1e-7)
