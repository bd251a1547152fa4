"""GPT-2, checked against transformers, and what this project adds to it."""

import copy
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import activations
import decoding
from config import arm
from config.schema import GPTConfig
from model import GPT, MLP, CausalSelfAttention, initial_std
from runtime.announce import count_parameters
from runtime.hardware import why_not_compile

CONFIG = GPTConfig(n_layer=3, n_head=4, n_embd=64, block_size=48, vocab_size=300)
IDS = torch.randint(0, 300, (2, 48), generator=torch.Generator().manual_seed(0))


def make(seed: int = 1, **changes: object) -> GPT:
    """A small GPT whose weights are larger than at init, so that softmax and GELU leave their linear range."""
    gpt = GPT(dataclasses.replace(CONFIG, **changes), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            if ".act." not in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        gpt.transformer.wte.weight[gpt.config.vocab_size :] = 0
    return gpt


@pytest.mark.parametrize(("activation", "bias"), [("gelu", True), ("gelu:exact=true", True), ("relu", True), ("silu", False)])
def test_equals_transformers_after_save_pretrained(tmp_path: Path, activation: str, bias: bool) -> None:
    from transformers import GPT2LMHeadModel

    ours = make(activation=activation, bias=bias)
    ours.save_pretrained(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        logits, expected = ours(IDS), theirs(IDS).logits
        loss = ours(IDS[:, :-1], IDS[:, 1:])
        expected_loss = theirs(IDS, labels=IDS).loss
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert float(loss) == pytest.approx(float(expected_loss), abs=1e-5)


def test_from_pretrained_takes_what_transformers_writes(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=48, vocab_size=300, initializer_range=0.2)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "head")
    GPT2Model.save_pretrained(theirs.transformer, tmp_path / "trunk")  # names without "transformer.", as OpenAI's on the hub
    for folder in ("head", "trunk"):
        ours = GPT.from_pretrained(tmp_path / folder).eval()
        with torch.no_grad():
            logits, expected = ours(IDS), theirs(IDS).logits
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


# Without a deterministic CUDA kernel, so that `deterministic=True` would end the run (torch.use_deterministic_algorithms).
NOT_REPEATABLE = {
    "bincount", "cumsum", "histc", "kthvalue", "median", "nll_loss2d_backward", "put_", "scatter_reduce", "take"
}  # fmt: skip


class Operators(TorchDispatchMode):
    """Notes the name of every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("activation", activations.names())
def test_a_step_off_the_cpu_needs_only_operators_that_can_repeat(activation: str) -> None:
    """On the meta device, which takes the paths of a GPU as far as this project chooses them."""
    gpt = make(activation=activation).to("meta").train()
    ids = IDS.to("meta")
    with Operators() as operators:
        gpt(ids, ids).backward()
    assert {"embedding_dense_backward", "mm"} <= operators.names
    assert not operators.names & NOT_REPEATABLE


@pytest.mark.parametrize("activation", ["hermite:degree=3", "gelu"])
def test_save_pretrained_round_trip(tmp_path: Path, activation: str) -> None:
    gpt = make(activation=activation, bias=False, mlp_init="unit", preactivation_std=0.5)
    gpt.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path).eval()
    assert again.config == dataclasses.replace(gpt.config)
    assert torch.equal(gpt(IDS), again(IDS))


def test_from_pretrained_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json and no weights"):
        GPT.from_pretrained(tmp_path)
    gpt = make()
    gpt.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"n_layer": 4}))
    with pytest.raises(ValueError, match=r"h\.3\..* is missing"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert'"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("mlp_init", ["gpt2", "unit"])
def test_initial_weights_have_gpt2_s_law(mlp_init: str) -> None:
    gpt = GPT(dataclasses.replace(CONFIG, n_embd=256, mlp_init=mlp_init), 3)
    state = gpt.state_dict()
    c_fc = 0.02 if mlp_init == "gpt2" else 1 / 16
    for name, std in (
        ("wte.weight", 0.02), ("wpe.weight", 0.02), ("h.1.attn.c_attn.weight", 0.02), ("h.1.mlp.c_fc.weight", c_fc),
        ("h.1.attn.c_proj.weight", 0.02 / 6**0.5), ("h.1.mlp.c_proj.weight", 0.02 / 6**0.5),
    ):  # fmt: skip
        weight = state[f"transformer.{name}"][:300]
        error = std / (2 * weight.numel()) ** 0.5
        assert abs(float(weight.std()) - std) < 5 * error, name
    assert not state["transformer.h.0.mlp.c_fc.bias"].any()


def test_init_is_the_seed_s_and_neither_the_activation_s_nor_the_global_generator_s() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    gelu, hermite = GPT(CONFIG, 5), GPT(dataclasses.replace(CONFIG, activation="hermite:degree=5"), 5)
    assert torch.equal(before, torch.get_rng_state())
    others = {n: p for n, p in hermite.named_parameters() if ".act." not in n}
    assert all(torch.equal(p, others[n]) for n, p in gelu.named_parameters())
    assert not torch.equal(gelu.transformer.wpe.weight, GPT(CONFIG, 6).transformer.wpe.weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_embd", [32, 64, 128, 192, 256, 384, 768, 1024, 1280, 1600])
def test_a_gated_mlp_costs_what_a_plain_one_costs(n_embd: int, bias: bool) -> None:
    """Parameters, counted and by formula, and FLOPs, within 1 %; the width is a multiple of 64 where that allows it."""
    config = dataclasses.replace(CONFIG, n_embd=n_embd, n_layer=1, bias=bias, block_size=8, vocab_size=64)
    with torch.device("meta"):
        mlps = [MLP(dataclasses.replace(config, mlp=kind)) for kind in ("plain", "gated")]
    plain, gated = (sum(p.numel() for p in mlp.parameters()) for mlp in mlps)
    assert gated == pytest.approx(plain, rel=0.01)
    width = dataclasses.replace(config, mlp="gated").mlp_width
    assert width % 64 == 0 or n_embd not in (384, 768, 1024, 1280, 1600)
    assert width == {768: 2048, 256: 688, 128: 344, 64: 170 if bias else 172}.get(n_embd, width)
    small = dataclasses.replace(config, n_embd=min(n_embd, 256), mlp="gated", activation="hermite:per=channel")
    gpt = GPT(small)
    assert count_parameters(small)[0] == gpt.num_parameters()
    assert small.matrix_parameters == sum(p.numel() for n, p in gpt.named_parameters() if p.dim() == 2 and ".act." not in n)


@pytest.mark.parametrize("activation", ["silu", "hermite:degree=3", "fourier:degree=1", "relu_squared"])
@pytest.mark.parametrize("mlp_init", ["gpt2", "unit"])
def test_the_product_has_the_second_moment_of_the_activation(mlp_init: str, activation: str) -> None:
    """Exactly, over the draw of the weights: E (F(g) u)^2 = E F^2 in closed form, and the branch adds what a plain one adds."""
    config = dataclasses.replace(CONFIG, n_embd=128, n_layer=1, activation=activation, mlp_init=mlp_init, bias=False)
    config = dataclasses.replace(config, preactivation_std=0.8) if mlp_init == "unit" else config
    gated = dataclasses.replace(config, mlp="gated")
    g_std, u_std = (initial_std(f"h.0.mlp.{name}.weight", gated) * 128**0.5 for name in ("c_gate", "c_fc"))
    assert u_std == pytest.approx(1, rel=1e-12)
    assert g_std == initial_std("h.0.mlp.c_fc.weight", config) * 128**0.5
    second = activations.gains(activations.build(activation, 8, g_std), g_std)[0]
    if ":" in activation:
        assert second == pytest.approx(g_std**2, rel=1e-6)
    added = [initial_std("h.0.mlp.c_proj.weight", c) ** 2 * c.mlp_width * second for c in (config, gated)]
    assert added[0] == pytest.approx(added[1], rel=1e-12)
    # Monte Carlo over 40 networks and 64 rows of unit second moment each.
    generator = torch.Generator().manual_seed(0)
    products, outputs = [], {"plain": list[float](), "gated": list[float]()}
    for seed in range(40):
        x = F.layer_norm(torch.randn(64, 128, generator=generator), (128,))
        for kind in ("plain", "gated"):
            mlp = GPT(dataclasses.replace(config, mlp=kind), seed).transformer.h[0].mlp
            mlp.c_proj.register_forward_pre_hook(lambda _, inputs: products.append(float(inputs[0].square().mean())))
            with torch.no_grad():
                outputs[kind].append(float(mlp(x).square().mean()))
    assert statistics.fmean(products[1::2]) == pytest.approx(second, rel=0.03)
    assert statistics.fmean(outputs["gated"]) == pytest.approx(added[0], rel=0.04)
    assert statistics.fmean(outputs["plain"]) == pytest.approx(added[0], rel=0.04)


def test_swiglu_is_its_formula() -> None:
    """Equation 6 of Shazeer 2020, with biases, from the weights by name."""
    gpt = make(mlp="gated", activation="silu")
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    w = {name.removeprefix("transformer.h.1.mlp."): p.detach() for name, p in gpt.named_parameters()}
    gate, up = (x @ w[f"{name}.weight"].T + w[f"{name}.bias"] for name in ("c_gate", "c_fc"))
    expected = (gate / (1 + (-gate).exp()) * up) @ w["c_proj.weight"].T + w["c_proj.bias"]
    assert (gpt.transformer.h[1].mlp(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("mlp_init", "input_scale"), [("gpt2", "auto"), ("unit", "auto"), ("unit", "1"), ("gpt2", "1")])
def test_the_activation_is_built_for_the_inputs_it_gets(mlp_init: str, input_scale: str) -> None:
    """Each layer's pre-activation std is input_std within 5 %, and there E F^2 / s^2 and E F'^2 are 1 within 5 %."""
    config = dataclasses.replace(
        CONFIG, n_embd=256, activation="hermite:degree=3", mlp_init=mlp_init, input_scale=input_scale, bias=False
    )
    if mlp_init == "unit":
        config = dataclasses.replace(config, preactivation_std=2.0)
    gpt = GPT(config, 0)
    seen = {}
    for name, module in gpt.named_modules():
        if isinstance(module, activations.Activation):
            module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, (m, args[0].detach())))
    gpt(torch.randint(0, 300, (8, 48), generator=torch.Generator().manual_seed(1)))
    assert len(seen) == 3
    for module, x in seen.values():
        if input_scale == "1":
            assert float(module.input_std) == 1
            continue
        s = float(module.input_std)
        assert float(x.std()) == pytest.approx(s, rel=0.05)
        x = x.clone().requires_grad_()
        y = module(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert float(y.detach().square().mean()) / s**2 == pytest.approx(1, rel=0.05)
        assert float(slope.square().mean()) == pytest.approx(1, rel=0.05)


def test_mup_at_its_base_width_is_the_standard_model_to_the_bit() -> None:
    standard, mup = make(), make(mup_base_width=64)
    assert all(torch.equal(p, q) for p, q in zip(standard.parameters(), mup.parameters(), strict=True))
    assert torch.equal(standard(IDS), mup(IDS))


@pytest.mark.parametrize("mlp_init", ["gpt2", "unit"])
@pytest.mark.parametrize("mlp", ["plain", "gated"])
def test_mup_s_initial_weights_and_factors_are_the_published_table_s(mlp: str, mlp_init: str) -> None:
    """Yang et al., Table 8: hidden variances go with 1/fan-in, tables keep theirs, logits are divided by the width ratio."""
    base = dataclasses.replace(CONFIG, mlp=mlp, mlp_init=mlp_init, bias=False, mup_base_width=64)
    wide = dataclasses.replace(base, n_embd=256)
    assert wide.width_ratio == 4
    for name, p in GPT(wide).named_parameters():
        if "ln_" in name:
            continue
        falls = 1 if name.endswith(("wte.weight", "wpe.weight")) else 4
        expected = initial_std(name, base) / falls**0.5
        assert initial_std(name, wide) == pytest.approx(expected, rel=0.01)  # a gated width is rounded
        values = p[:300] if "wte" in name else p
        assert float(values.std()) == pytest.approx(expected, rel=0.05), name
    acts = [GPT(config).transformer.h[0].mlp.act for config in (base, wide)]
    assert float(acts[0].input_std) == pytest.approx(float(acts[1].input_std))
    gpt = make(mup_base_width=16)
    assert torch.allclose(gpt(IDS), gpt.transformer(IDS) @ gpt.transformer.wte.weight[:300].T / 4, atol=1e-6)


@pytest.mark.parametrize(("heads", "base_size"), [(0, 8), (2, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mup_scales_attention_by_the_size_of_a_head(heads: int, base_size: int, dtype: torch.dtype) -> None:
    """sqrt(D of the base) / D, by both kernels; with the same number of heads, or with that of a base model that is named."""
    config = dataclasses.replace(CONFIG, mup_base_width=32, mup_base_heads=heads, bias=False)
    attn = CausalSelfAttention(config, 0).to(dtype)
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, k, v = (t.view(2, 9, 4, 16).transpose(1, 2) for t in (x @ attn.c_attn.weight.T).float().split(64, -1))
    scores = (q @ k.mT * base_size**0.5 / 16).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 9, 64) @ attn.c_proj.weight.float().T
    assert (attn(x).float() - expected).abs().max() < (1e-6 if dtype == torch.float32 else 2e-2)
    assert config.attention_scale == pytest.approx(base_size**0.5 / 16)


def test_a_model_with_mup_is_written_as_the_standard_one_that_computes_the_same(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    gpt = make(mup_base_width=32, mup_base_heads=2, n_head=2)
    gpt.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path).eval()
    assert again.config == dataclasses.replace(gpt.config, mup_base_width=0, mup_base_heads=0)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = gpt(IDS)
        for logits in (again(IDS), theirs(IDS).logits):
            assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_padded_ids_take_no_part() -> None:
    gpt = make(vocab_size=257)
    ids = IDS[:, :8] % 257
    assert gpt.transformer.wte.weight.shape[0] == 320
    assert gpt(ids).shape == (2, 8, 257)
    gpt(ids, ids).backward()
    assert not gpt.transformer.wte.weight.grad[257:].any()
    with torch.no_grad():
        gpt.transformer.wte.weight[257:] = 100.0
    gpt.requires_grad_(False)
    assert float(gpt(ids, ids)) == pytest.approx(float(F.cross_entropy(gpt(ids).flatten(0, 1), ids.flatten())), rel=1e-6)
    assert int(gpt.generate(ids, 20, generator=torch.Generator().manual_seed(0)).max()) < 257


def test_loss_counts_each_target_once_and_minus_one_never() -> None:
    gpt = make()
    targets = IDS.roll(-1, 1).clone()
    targets[0, 3:9] = -1
    gpt.requires_grad_(False)
    losses = gpt(IDS, targets, reduction="none")
    assert losses.shape == (2, 48)
    assert not losses[0, 3:9].any()
    assert float(gpt(IDS, targets)) == pytest.approx(float(losses.sum() / (targets >= 0).sum()), rel=1e-6)


def test_dropout_acts_in_training_alone() -> None:
    gpt = make(dropout=0.5)
    assert torch.equal(gpt(IDS), gpt(IDS))
    gpt.train()
    assert not torch.equal(gpt(IDS), gpt(IDS))


@pytest.mark.parametrize("name", ["gelu", "hermite:degree=3", "tpgu:degree=5", "gated(hermite:degree=3)"])
@pytest.mark.parametrize("prompt_length", [1, 20, 60])
def test_the_cache_changes_no_token(name: str, prompt_length: int) -> None:
    """Within the context and past block_size, where it is rebuilt; with muP where the MLP is gated."""
    gpt = make(**arm.fields(name), mup_base_width=32 * name.startswith("gated"))
    prompt = IDS.repeat(1, 2)[:, :prompt_length]
    first, second = (
        gpt.generate(prompt, 60, generator=torch.Generator().manual_seed(7), use_cache=cached, top_k=50)
        for cached in (True, False)
    )
    assert torch.equal(first, second)
    assert first.shape == (2, prompt_length + 60)
    assert torch.equal(first[:, :prompt_length], prompt)


def test_cached_logits_are_the_full_ones() -> None:
    gpt = make()
    cache = gpt.empty_cache(IDS)
    with torch.no_grad():
        last = gpt(IDS[:, :20], cache=cache)
        for t in range(20, 48):
            assert (last[:, -1] - gpt(IDS[:, :t])[:, -1]).abs().max() < 1e-4
            last = gpt(IDS[:, t : t + 1], cache=cache)
    assert cache.length == 48


def test_frozen_activations_share_the_model_s_weights_and_leave_it_as_it_was() -> None:
    gpt = make(activation="hermite:degree=3", n_layer=1)
    act = gpt.transformer.h[0].mlp.act
    twin = decoding.frozen(gpt)
    assert gpt.transformer.h[0].mlp.act is act
    assert twin.transformer.wte is gpt.transformer.wte
    assert twin.transformer.h[0].mlp.c_fc is gpt.transformer.h[0].mlp.c_fc
    gpt(IDS[:, :8], cache=gpt.empty_cache(IDS)).sum().backward()
    assert act.coefficients.grad.abs().min() > 0
    with torch.no_grad():
        before = twin(IDS[:, :8])
        assert torch.allclose(before, gpt(IDS[:, :8]), atol=1e-5)
        act.coefficients += 1
        assert torch.equal(twin(IDS[:, :8]), before)
        assert not torch.allclose(gpt(IDS[:, :8]), before, atol=1e-2)
    plain = make()
    assert decoding.frozen(plain) is plain, "GELU has nothing to prepare"


def test_each_generation_freezes_anew() -> None:
    gpt = make(activation="hermite:degree=3", n_layer=1)
    before = gpt.generate(IDS[:, :5], 20, temperature=0.0)
    with torch.no_grad():
        gpt.transformer.h[0].mlp.act.coefficients *= -3
    after = gpt.generate(IDS[:, :5], 20, temperature=0.0)
    assert not torch.equal(before, after)
    assert torch.equal(after, gpt.generate(IDS[:, :5], 20, temperature=0.0, use_cache=False))


@pytest.mark.skipif(bool(why_not_compile(torch.device("cpu"))), reason="no C++ compiler")
def test_compiled_decoding_changes_no_token() -> None:
    gpt = make()
    prompt = IDS[:1, :30]
    plain = gpt.generate(prompt, 40, temperature=0.0)  # past block_size too
    decoding.compile_products(gpt)
    with torch.inference_mode():
        assert torch.allclose(gpt(IDS[:1, :1]), make()(IDS[:1, :1]), atol=1e-5)
    assert torch.equal(gpt.generate(prompt, 40, temperature=0.0), plain)


@pytest.mark.parametrize("mlp", ["plain", "gated"])
def test_every_product_of_a_single_row_is_the_decoding_one_in_copies_too(mlp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def matvec(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return decoding.matvec(weight, x)

    monkeypatch.setattr(decoding, "compiled_matvec", lambda: matvec)
    gpt = make(activation="hermite:degree=3", mlp=mlp)
    plain = gpt.generate(IDS[:1, :30], 40, temperature=0.0)
    decoding.compile_products(gpt)
    twin = copy.deepcopy(gpt)
    with torch.no_grad():
        twin.transformer.wte.weight.zero_()
    assert not twin(IDS[:1, :1]).any()
    of_mlp = [(256, 64), (64, 256)] if mlp == "plain" else [(170, 64), (170, 64), (64, 170)]
    assert seen == [(192, 64), (64, 64), *of_mlp] * 3 + [(320, 64)]
    assert torch.equal(gpt.generate(IDS[:1, :30], 40, temperature=0.0), plain)
    seen.clear()
    gpt(IDS)
    assert not seen


def test_temperature_zero_takes_the_likeliest() -> None:
    gpt = make()
    out = gpt.generate(IDS[:, :5], 4, temperature=0.0)
    for t in range(5, 9):
        assert torch.equal(out[:, t], gpt(out[:, :t])[:, -1].argmax(-1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(0.05, 1.0), st.floats(0.01, 5.0))
def test_sampling_keeps_to_top_k_and_top_p(seed: int, top_k: int, top_p: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 12, generator=generator)
    chosen = decoding.sample(logits, temperature, top_k, top_p, generator)
    probabilities = (logits / temperature).softmax(-1)
    for row, token in zip(probabilities, chosen, strict=True):
        likelier = row[row > row[token]]
        assert len(likelier) < top_k
        kept = row.sort(descending=True).values[:top_k]
        assert float(likelier.sum()) / float(kept.sum()) < top_p + 1e-5


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log().expand(40_000, -1)
    counts = decoding.sample(logits, 1.0, 0, 1.0, torch.Generator().manual_seed(0)).bincount(minlength=4) / 40_000
    assert torch.allclose(counts, torch.tensor([0.5, 0.2, 0.2, 0.1]), atol=0.01)
    only = decoding.sample(logits, 1.0, 0, 0.69, torch.Generator().manual_seed(0)).unique()
    assert only.numel() == 2  # 0.5, and one of the two of 0.2 that brings the sum to 0.7


def test_parameters_and_flops_of_gpt2_124m() -> None:
    config = GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
    gpt = GPT(config)
    assert gpt.num_parameters() == 124_439_808  # transformers' count for gpt2
    assert gpt.flops_per_token() == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


def test_a_sequence_that_ended_gives_eos_alone_and_all_ended_end_the_stream() -> None:
    gpt = GPT(CONFIG, 0)
    start = torch.zeros(4, 1, dtype=torch.int64)

    def drawn(eos: int | None) -> torch.Tensor:
        return gpt.generate(start, 60, temperature=5.0, top_k=8, generator=torch.Generator().manual_seed(1), eos=eos)[:, 1:]

    free = drawn(None)
    eos = int(free[0, 3])
    ended = drawn(eos)
    for row, before in zip(ended.tolist(), free.tolist(), strict=True):
        length = before.index(eos) + 1 if eos in before else len(before)
        assert row[:1] == before[:1]
        if eos in row:
            first = row.index(eos)
            assert set(row[first:]) == {eos}
            assert first <= length
    lengths = [row.index(eos) + 1 if eos in row else ended.size(1) for row in ended.tolist()]
    assert ended.size(1) == max(lengths)
    alone = gpt.generate(start[:1], 60, temperature=0, eos=int(gpt.generate(start[:1], 1, temperature=0)[0, 1]))
    assert alone.size(1) == 2


@pytest.mark.parametrize("compiled", [False, True])
def test_recomputed_blocks_give_the_same_gradients_to_the_bit(compiled: bool) -> None:
    """With dropout: the second pass draws the first one's masks. Compiled by what traces as Inductor does and needs no C++."""
    config = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=30, dropout=0.2, activation="hermite:degree=3")
    tokens = torch.randint(0, 30, (2, 2, 8), generator=torch.Generator().manual_seed(0))
    gradients, kept = [], []
    for recomputes in (False, True):
        gpt = GPT(config)
        if compiled:
            torch._dynamo.reset()
            gpt.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        if recomputes:
            gpt.recompute_blocks()
        torch.manual_seed(3)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t):
            loss = gpt(*tokens)
        loss.backward()
        gradients.append([loss, *(p.grad for p in gpt.parameters())])
        kept.append(sum(sizes))
    assert all(map(torch.equal, *gradients))
    assert kept[1] < kept[0]


def test_halves_keep_the_last_half_when_the_context_is_full() -> None:
    """Each token against a model that recomputes the context which it should see; `sliding` is the default and another text."""
    gpt = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=40), seed=1).eval()
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.mul_(8)  # so that contexts matter
    start = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    tokens, begin = start, 0
    for _ in range(20):
        if tokens.size(1) - 1 - begin >= 8:
            begin = tokens.size(1) - 4
        with torch.inference_mode():
            chosen = gpt(tokens[:, begin:])[:, -1].argmax(-1)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    assert torch.equal(gpt.generate(start, 20, temperature=0, window="halves"), tokens)
    sliding = gpt.generate(start, 20, temperature=0)
    assert torch.equal(sliding[:, :9], tokens[:, :9])  # up to block_size, and the first token past it, they are the same
    assert torch.equal(sliding, gpt.generate(start, 20, temperature=0, window="sliding"))
    assert not torch.equal(sliding, tokens)


def test_a_compiled_model_refuses_second_derivatives_in_its_own_words() -> None:
    """PyTorch's error would come later and name a switch that leads to the next error. First derivatives stay as they are."""
    torch._dynamo.reset()
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=40, activation="hermite:degree=3")
    plain, gpt = GPT(config, seed=1), GPT(config, seed=1)
    gpt.compile(backend="aot_eager", fullgraph=True)
    tokens, parameters = torch.arange(8)[None], list(gpt.parameters())
    with pytest.raises(RuntimeError, match=r"a compiled GPT has first derivatives only.*another GPT, not compiled"):
        torch.autograd.grad(gpt(tokens, tokens), parameters, create_graph=True)
    found = torch.autograd.grad(gpt(tokens, tokens), parameters)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the only one that is differentiable twice
        wanted = torch.autograd.grad(plain(tokens, tokens), list(plain.parameters()), create_graph=True)
        sum(g.square().sum() for g in wanted).backward()
    torch.testing.assert_close(found, wanted)
    assert plain.transformer.wte.weight.grad is not None
