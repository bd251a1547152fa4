"""What is told of, and what is not."""

import pytest
import torch

from config.schema import GPTConfig
from model import GPT
from runtime.watch import Watch, coefficients


@pytest.fixture
def gpt() -> GPT:
    config = GPTConfig(n_layer=2, n_head=1, n_embd=8, block_size=4, vocab_size=10, activation="hermite:degree=3")
    return GPT(config)


def test_a_jump_of_the_loss_is_told_and_a_falling_loss_is_not(gpt: GPT) -> None:
    watch = Watch(gpt)
    for step in range(40):
        assert watch.report(step, 5.0 / (1 + step) + 0.001 * (step % 3)) == []
    (line,) = watch.report(40, 3.0)
    assert line.startswith("step 40: loss spike, 3.0000 after a mean of 0.")
    assert watch.report(41, float("nan")) == []


def test_a_coefficient_that_runs_away_is_named_once(gpt: GPT) -> None:
    watch = Watch(gpt)
    name = next(name for name in coefficients(gpt) if ".1." in name)
    with torch.no_grad():
        coefficients(gpt)[name].mul_(1e6)
    (line,) = watch.report(7, 1.0)
    assert line.startswith(f"step 7: coefficient {name} runs away")
    assert watch.report(8, 1.0) == []
    with torch.no_grad():
        for parameter in coefficients(gpt).values():
            parameter.fill_(float("nan"))
    assert len(watch.report(9, 1.0)) == len(coefficients(gpt)) - 1


def test_fixed_activations_have_nothing_to_watch() -> None:
    plain = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=10))
    assert Watch(plain).limits == {}
