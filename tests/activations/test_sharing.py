"""per=model: one set of coefficients, counted, decayed, stepped and saved once; and activations by depth in a GPT."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import activations
from activations import telemetry
from config.schema import GPTConfig
from model import GPT
from runtime.announce import count_parameters

IDS = torch.randint(0, 257, (2, 8), generator=torch.Generator().manual_seed(0))
EVERY = ["hermite:per=model", "rational:per=model", "tpgu:per=model", "fourier:per=model,learnable=false"]


def make(activation: str, n_layer: int = 2) -> GPT:
    return GPT(GPTConfig(n_layer=n_layer, n_head=2, n_embd=16, block_size=8, vocab_size=257, activation=activation))


@pytest.mark.parametrize("spec", [*EVERY, "hermite:degree=2;relu;fourier:per=model;fourier:per=model"])
def test_parameters_are_counted_as_they_are(spec: str) -> None:
    gpt = make(spec, 4)
    ours = [p for name, p in gpt.named_parameters() if activations.is_coefficient(name, p)]
    assert count_parameters(gpt.config) == (gpt.num_parameters(), sum(p.numel() for p in ours))
    assert ours or "false" in spec


def test_one_set_is_listed_once_without_decay_and_gets_the_gradient_of_all_layers() -> None:
    shared, apart = make("hermite:per=model"), make("hermite")
    (group,) = [g for g in activations.parameter_groups(shared, 1e-3, 0.1) if g["name"] == "activation"]
    assert [p.shape for p in group["params"]] == [(4,)]
    assert group["weight_decay"] == 0
    assert torch.equal(shared(IDS), apart(IDS)), "they start alike"
    for gpt in (shared, apart):
        gpt(IDS, IDS).backward()
    gradients = [block.mlp.act.coefficients.grad for block in apart.transformer.h]
    torch.testing.assert_close(group["params"][0].grad, sum(gradients))


@pytest.mark.parametrize("spec", EVERY)
def test_a_file_holds_it_once_and_a_model_reads_it_for_all(spec: str, tmp_path: Path) -> None:
    gpt = make(spec)
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            parameter.add_(0.01 if activations.is_coefficient(name, parameter) else 0)
    gpt.save_pretrained(tmp_path)
    names = {name for name in load_file(tmp_path / "model.safetensors") if ".mlp.act." in name}
    parameters = {n for n, p in gpt.named_parameters() if activations.is_coefficient(n, p)}
    assert parameters <= names
    assert not names & activations.repeated_names(gpt)
    again = GPT.from_pretrained(tmp_path)
    assert torch.equal(again(IDS), gpt(IDS))
    assert again.num_parameters() == gpt.num_parameters()


def test_copies_moves_and_types_keep_the_tie() -> None:
    for gpt in (
        copy.deepcopy(make("hermite:per=model")),
        make("hermite:per=model").double(),
        make("hermite:per=model").bfloat16(),
    ):
        first, second = (block.mlp.act for block in gpt.transformer.h)
        assert first.coefficients is second.coefficients
        assert first is not second


def test_generation_and_telemetry_know_every_layer() -> None:
    gpt = make("hermite:per=model").eval()
    with torch.no_grad():
        gpt.transformer.h[1].mlp.act.coefficients.mul_(1.5)
    by_cache, without = (gpt.generate(IDS[:1, :4], 4, temperature=0.0, use_cache=cached) for cached in (True, False))
    assert torch.equal(by_cache, without)
    row = telemetry.observe(gpt, IDS)
    seen = [row[f"transformer.h.{layer}.mlp.act.coefficients.1"] for layer in (0, 1)]
    assert seen[0] == seen[1] == pytest.approx(1.5 * 0.632455, rel=1e-5)
    assert row["transformer.h.0.mlp.act.input_std"] != row["transformer.h.1.mlp.act.input_std"]


def test_modules_of_other_specs_are_left_alone() -> None:
    specs = ("hermite:per=model", "hermite:per=model", "hermite:degree=5,per=model", "hermite")
    model = nn.ModuleList(activations.build(spec, 4) for spec in specs)
    assert activations.share(model) == 2
    assert len({id(p) for p in model.parameters()}) == 3
    assert activations.repeated_names(model) == {"1.coefficients"}


def test_layers_have_the_activation_of_their_part() -> None:
    gpt = make("hermite:degree=2;relu", 4)
    assert [type(block.mlp.act).__name__ for block in gpt.transformer.h] == ["Hermite", "Hermite", "ReLU", "ReLU"]
    with pytest.raises(ValueError, match="3 layers have no 2 equal parts"):
        make("hermite:degree=2;relu", 3)


@pytest.mark.parametrize(
    ("spec", "said"), [("relu;gelu", "one activation for each part of the depth"), ("hermite:per=model", "per=model is for")]
)
def test_swap_refuses_by_name(spec: str, said: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(ValueError, match=said):
        activations.swap(model, nn.ReLU, spec)
    assert type(model[1]) is nn.ReLU


def test_a_start_for_each_layer_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        activations.build("tpgu:init=paper,draw=layer,per=model", 4)


@pytest.mark.timeout(600)
def test_a_compiled_step_is_the_eager_one() -> None:
    """Blocks of two activations, both shared, under Inductor."""
    torch._dynamo.reset()
    spec = "hermite:degree=2,per=model;prelu:per=model"  # families that compile in seconds
    gradients = []
    for compiled in (False, True):
        gpt = make(spec, 4)
        if compiled:
            gpt.compile(fullgraph=True, dynamic=False, options={"aot_inductor.debug_compile": True})
        gpt(IDS, IDS).backward()
        gradients.append([p.grad for p in gpt.parameters()])
    for eager, compiled_one in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled_one, eager, rtol=1e-4, atol=1e-6)
