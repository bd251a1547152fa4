"""What is told of, and what is not."""

from pathlib import Path

import pytest
import torch

from activations import registry
from activations.hermite import Hermite
from config.schema import Config, GPTConfig
from model import GPT
from runtime import log, setup
from runtime.watch import Watch, coefficients
from tests.runs import train_here


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


def test_the_gradient_that_an_activation_passes_back_is_that_of_the_matrix_before_it() -> None:
    """c_gate's where the MLP is gated, although c_fc's flows beside the activation."""
    gpt = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=10, mlp="gated"))
    ids = torch.arange(4)[None]
    gpt(ids, ids).backward()
    gpt.transformer.h[0].mlp.c_gate.weight.grad.zero_()
    watch = Watch(gpt)
    watch.note_gradients()
    assert watch.input_gradients() == {"transformer.h.0.mlp.act.input_gradient": 0.0}
    assert watch.report(3, 1.0) == ["step 3: no gradient reaches the weights of transformer.h.0.mlp.c_gate: they do not learn"]


class Severed(Hermite):
    """An activation that passes no gradient back where it is compiled: what Inductor once made of a Hermite of degree 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.detach() if torch.compiler.is_compiling() else x)


@pytest.mark.parametrize("activation", ["severed", "hermite"])
def test_a_run_says_which_weights_get_no_gradient_from_compiled_code(
    activation: str, small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its telemetry and in one line, by the code that trains: eager gradients are in order here."""
    monkeypatch.setitem(registry.FAMILIES, "severed", f"{__name__}.Severed")
    monkeypatch.setattr(setup, "compile_model", lambda gpt, *_: [gpt, gpt.compile(backend="eager", fullgraph=True)][0])
    torch._dynamo.reset()
    config = train_here(small, activation=activation, max_steps=4, telemetry_interval=2, log_interval=1)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "no gradient reaches" in line]
    found = [
        value for row in log.read(Path(config.out_dir) / "metrics.jsonl") for k, value in row.items() if "input_gradient" in k
    ]
    assert len(found) == 2 * config.n_layer
    if activation == "severed":
        layers = ", ".join(f"transformer.h.{layer}.mlp.c_fc" for layer in range(config.n_layer))
        assert warnings == [f"step 1: no gradient reaches the weights of {layers}: they do not learn"]
        assert found == [0.0] * len(found)
    else:
        assert warnings == []
        assert all(0.01 < value < 100 for value in found)
