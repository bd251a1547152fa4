"""The schedule and the groups are nanoGPT's, but for the activation's own."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from config.schema import Config
from config.tiny import config as tiny
from model import GPT
from runtime.optim import learning_rate, set_learning_rate
from runtime.optim import optimizer as make_optimizer
from runtime.setup import set_up


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


def test_wsd_is_a_warm_up_a_constant_rate_and_a_1_sqrt_decay() -> None:
    """Haegele et al. 2024, arXiv 2405.18392: f(n) = 1 - sqrt((n - (N - N_decay)) / N_decay)."""
    config = dataclasses.replace(
        tiny, learning_rate=1e-3, min_lr=1e-4, warmup_steps=99, lr_schedule="wsd", lr_decay_fraction=0.2, max_steps=1000
    )
    rates = [learning_rate(step, config) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-5)
    assert set(rates[99:801]) == {1e-3}
    assert rates[850] == pytest.approx(1e-4 + 9e-4 * (1 - (50 / 200) ** 0.5))
    assert rates[1000] == 1e-4
    assert all(one > other for one, other in itertools.pairwise(rates[800:]))


@given(st.integers(0, 3000), st.integers(0, 300), st.integers(1, 1500), st.floats(0.001, 1.0))
def test_wsd_is_bounded_and_meets_its_ends(step: int, warmup: int, decay: int, fraction: float) -> None:
    config = dataclasses.replace(
        tiny, warmup_steps=warmup, lr_decay_steps=decay, lr_schedule="wsd", lr_decay_fraction=fraction, max_steps=2000
    )
    rate = learning_rate(step, config)
    assert 0 < rate <= config.learning_rate
    if warmup <= step <= config.decay_start < decay:
        assert rate == config.learning_rate
    if step >= max(warmup, decay):
        assert rate == config.min_lr


def test_a_branch_decays_over_its_own_length() -> None:
    """Whatever part of the run it is; up to there its rate is its trunk's."""
    branch = dataclasses.replace(tiny, lr_schedule="wsd", branch_from="runs/trunk@600", max_steps=1000)
    whole = dataclasses.replace(tiny, lr_schedule="wsd", lr_decay_fraction=0.4, max_steps=1000)
    trunk = dataclasses.replace(tiny, lr_schedule="constant", max_steps=700)
    assert [learning_rate(step, branch) for step in range(1001)] == [learning_rate(step, whole) for step in range(1001)]
    assert [learning_rate(step, branch) for step in range(601)] == [learning_rate(step, trunk) for step in range(601)]


@pytest.mark.parametrize("activation", ["gelu", "hermite:degree=3", "hermite:degree=3,per=channel"])
def test_decay_is_on_matrices_and_embeddings_alone(activation: str) -> None:
    config = dataclasses.replace(tiny, activation=activation, activation_lr_scale=0.5)
    model = GPT(config.gpt(257))
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, config, torch.device("cpu"))
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


@pytest.mark.parametrize("activation", ["gelu", "hermite:degree=3,per=channel", "tpgu", "rational"])
@pytest.mark.parametrize("mlp", ["plain", "gated"])
def test_muon_has_the_weights_of_the_linear_layers_and_nothing_else(activation: str, mlp: str) -> None:
    """By module: a table of coefficients per channel has two dimensions, and is AdamW's; so are embeddings and the head."""
    config = dataclasses.replace(tiny, activation=activation, mlp=mlp, optimizer="muon", activation_lr_scale=0.5, bias=True)
    model = GPT(config.gpt(257))
    optimizer = make_optimizer(model, config, torch.device("cpu"))
    names = {id(p): name for name, p in model.named_parameters()}
    listed = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(name for name, _ in listed) == sorted(names.values())
    muons = [name for name, group in listed if "ns_steps" in group]
    layers = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"} | ({"mlp.c_gate"} if mlp == "gated" else set())
    assert sorted(muons) == sorted(f"transformer.h.{i}.{name}.weight" for i in range(config.n_layer) for name in layers)
    set_learning_rate(optimizer, 1e-3)
    for name, group in listed:
        assert group["lr"] == (0.5e-3 if ".act." in name else 1e-3)
        decayed = name in muons or name.endswith(("wte.weight", "wpe.weight"))
        assert group["weight_decay"] == (config.weight_decay if decayed else 0.0), name
        assert (group["name"], group.get("adjust_lr_fn")) == ("matrices", "match_rms_adamw") or name not in muons


@pytest.mark.parametrize(("optimizer", "slower"), [("adamw", 4.0), ("muon", 2.0)])
def test_mup_slows_the_hidden_matrices_alone(optimizer: str, slower: float) -> None:
    """Table 8 of Yang et al. for Adam, 1/r; 1/sqrt(r) for Muon. A step's decay leaves the same of a weight at each width."""
    config = dataclasses.replace(tiny, n_embd=128, n_head=2, optimizer=optimizer, bias=True, mup_base_width=32)
    config = dataclasses.replace(config, activation="hermite:degree=3,per=channel", activation_lr_scale=0.5)
    model = GPT(config.gpt(257))
    made = make_optimizer(model, config, torch.device("cpu"))
    names = {id(p): name for name, p in model.named_parameters()}
    for rate in (config.learning_rate, 1e-3):
        for group in made.param_groups:
            for name in (names[id(p)] for p in group["params"]):
                is_hidden = "c_" in name and name.endswith("weight")
                expected = rate * 0.5 if ".act." in name else rate / slower if is_hidden else rate
                assert group["lr"] == pytest.approx(expected), name
                decays = is_hidden or name.endswith(("wte.weight", "wpe.weight"))
                assert group["lr"] * group["weight_decay"] == pytest.approx(rate * config.weight_decay * decays), name
        set_learning_rate(made, 1e-3)
    standard, at_base = (dataclasses.replace(config, mup_base_width=width) for width in (0, 128))
    groups = [make_optimizer(GPT(c.gpt(257)), c, torch.device("cpu")).state_dict()["param_groups"] for c in (standard, at_base)]
    assert groups[0] == groups[1]


def test_steps_of_muon_are_the_written_out_rule_and_adamw_s_are_its_own() -> None:
    """Nesterov momentum, five quintic iterations in bfloat16, and an update whose RMS is AdamW's 0.2, whatever the shape."""
    config = dataclasses.replace(tiny, optimizer="muon", n_layer=1, n_head=2, n_embd=64, bias=True)
    model, twin = GPT(config.gpt(257)), GPT(config.gpt(257))
    both = make_optimizer(model, config, torch.device("cpu"))
    alone = make_optimizer(twin, dataclasses.replace(config, optimizer="adamw"), torch.device("cpu"))
    set_learning_rate(both, 1e-2)
    set_learning_rate(alone, 1e-2)
    generator = torch.Generator().manual_seed(0)
    momenta = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for _ in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
            momenta[name] = 0.95 * momenta[name] + 0.05 * p.grad
        both.step()
        alone.step()
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            if "c_" not in name or name.endswith("bias"):
                assert torch.equal(p, q), name
                continue
            assert p.grad is not None
            x = (0.05 * p.grad + 0.95 * momenta[name]).double()
            x /= x.norm()
            for _ in range(5):
                square = x @ x.T
                x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
            step = (before[name] * (1 - 1e-2 * config.weight_decay) - p.detach()) / 1e-2
            assert (step - 0.2 * max(p.shape) ** 0.5 * x).norm() < 0.02 * step.norm(), name
            assert float(step.square().mean().sqrt()) == pytest.approx(0.2, rel=0.25), name


def test_a_pytorch_without_muon_is_named(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(
        ValueError, match=r"optimizer 'muon' needs PyTorch 2\.9 or later, this is 2\..*; type --optimizer adamw, or"
    ):
        set_up(dataclasses.replace(small, optimizer="muon"))
    assert not Path(small.out_dir).exists()


def test_one_step_is_the_written_out_adamw() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    before, grad = model.weight.detach().clone(), torch.randn(2, 3)
    optimizer = make_optimizer(model, tiny, torch.device("cpu"))
    set_learning_rate(optimizer, 1e-2)
    model.weight.grad, model.bias.grad = grad.clone(), torch.zeros(2)
    optimizer.step()
    m, v = (1 - tiny.beta1) * grad, (1 - tiny.beta2) * grad**2
    update = (m / (1 - tiny.beta1)) / (torch.sqrt(v / (1 - tiny.beta2)) + 1e-8)
    expected = before * (1 - 1e-2 * tiny.weight_decay) - 1e-2 * update
    assert torch.allclose(model.weight, expected, atol=1e-7)


def test_a_gradient_scaler_skips_the_step_of_both() -> None:
    config = dataclasses.replace(tiny, optimizer="muon", n_layer=1, n_head=2, n_embd=64)
    model = GPT(config.gpt(257))
    optimizer, scaler = make_optimizer(model, config, torch.device("cpu")), torch.amp.GradScaler("cpu")
    ids = torch.arange(20)[None]
    for overflow in (False, True):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        scaler.scale(model(ids, ids)).backward()
        if overflow:
            model.transformer.ln_f.weight.grad[0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == (set() if overflow else before.keys())
