"""Swapping activations in our GPT, transformers' GPT-2 and ConvNeXt, and plain module trees."""

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextForImageClassification, GPT2Config, GPT2LMHeadModel
from transformers.activations import GELUActivation, NewGELUActivation, SiLUActivation

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


def fed(module: Activation) -> tuple[int, int]:
    return module.channels, module.channel_dim


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
    assert activations.swap(model, GELUActivation, spec, example_inputs=torch.zeros(1, 3, 16, 16)) == 2
    assert [fed(module) for module in swapped(model)] == ([(32, -1), (64, -1)] if spec == "tpgu" else [(1, -1)] * 2)
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


SIZES = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQ2SEQ = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
SEQ2SEQ |= {"d_model": 32, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
DECODER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = torch.arange(12)[None] + 3


def opt() -> nn.Module:
    config = transformers.OPTConfig(**SIZES, **DECODER, ffn_dim=128, word_embed_proj_dim=32, max_position_embeddings=64)
    return transformers.OPTForCausalLM(config)


def bart() -> nn.Module:
    return transformers.BartModel(transformers.BartConfig(**SIZES, **SEQ2SEQ, max_position_embeddings=64))


def whisper() -> nn.Module:
    rest = {"decoder_start_token_id": 1, "suppress_tokens": [], "begin_suppress_tokens": []}
    return transformers.WhisperModel(transformers.WhisperConfig(**SIZES, **SEQ2SEQ, **rest, max_source_positions=20))


def wav2vec2() -> nn.Module:
    conv = {"conv_dim": (16, 24), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    conv |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}  # type: ignore[dict-item]
    return transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**DECODER, **conv, intermediate_size=128))


def qwen2_moe() -> nn.Module:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
    config = transformers.Qwen2MoeConfig(**DECODER, **experts, num_key_value_heads=2, intermediate_size=48, vocab_size=100)
    return transformers.Qwen2MoeForCausalLM(config)


class Residual(nn.Module):
    """One ReLU in two places, as in ResNet's basic block: after a norm, and after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.act, self.pool, self.last, self.head = nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.act(self.norm(self.conv(self.act(h))) + h)
        y: Tensor = self.head(self.last(self.pool(h)).mean((2, 3)))
        return y


def encoder_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(32, 2, 128, activation=nn.GELU(), batch_first=True)


SOUND, PICTURE = torch.zeros(1, 400), torch.zeros(2, 3, 8, 8)
SPEECH = {"input_features": torch.zeros(2, 80, 40), "decoder_input_ids": TOKENS.expand(2, -1)}


@pytest.mark.parametrize(
    ("make", "kind", "example"),
    [
        (opt, nn.ReLU, None),
        (bart, GELUActivation, None),
        (whisper, GELUActivation, SPEECH),
        (wav2vec2, GELUActivation, SOUND),
        (qwen2_moe, SiLUActivation, None),
        (convnext, GELUActivation, {"pixel_values": torch.zeros(1, 3, 16, 16)}),
        (Residual, nn.ReLU, (PICTURE,)),
        (encoder_layer, nn.GELU, torch.zeros(2, 5, 32)),
    ],
)
def test_channels_are_those_that_the_activation_is_fed(make: Callable[[], nn.Module], kind: type, example: object) -> None:
    """Against the shapes that a hook of our own sees, and a last dimension that differs from the channels in conv nets."""
    torch.manual_seed(0)
    model = make().eval()
    if example is None:
        inputs: dict[str, Tensor] = {"input_ids": TOKENS}
    else:
        inputs = example if isinstance(example, dict) else {"": example[0] if isinstance(example, tuple) else example}  # type: ignore[dict-item]

    def run() -> object:
        with torch.no_grad():
            return model(inputs[""]) if "" in inputs else model(**inputs)

    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))  # type: ignore[misc]
    run()
    activations.swap(model, kind, "tpgu:degree=2", example_inputs=example)
    assert seen
    for name, x in seen.items():
        module = model.get_submodule(name)
        assert isinstance(module, Activation)
        first = make in (wav2vec2, Residual) and "feed_forward" not in name
        dim = 1 - x.dim() if first else -1
        assert fed(module) == (x.shape[dim], dim), name
        assert len(module.values()["coefficients"]) == x.shape[dim]
    run()


def test_the_pass_changes_nothing_in_the_model() -> None:
    model = Residual().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    activations.swap(model, nn.ReLU, "hermite:per=channel", example_inputs=torch.randn(4, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items() if name in before)


def test_groups_lie_along_channels_not_along_image_columns() -> None:
    model = Residual()
    activations.swap(model, nn.ReLU, "rational:groups=8", example_inputs=PICTURE)
    act = model.act
    assert isinstance(act, Activation)
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    before = act(x)
    with torch.no_grad():
        act.get_parameter("numerator")[0].add_(1.0)
        changed = (act(x) - before).abs()
    assert changed.amax((0, 2, 3)).nonzero().flatten().tolist() == [0, 1], "the first group of 16 channels in 8"
    assert (changed[:, :2].amax((0, 1)) > 0).all(), "in every row and column"
    torch.testing.assert_close(act(x).double(), act.reference(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(act.frozen()(x), act(x))


def swin() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    return transformers.SwinModel(transformers.SwinConfig(**sizes))


def decoder_layer() -> nn.Module:
    return nn.TransformerDecoderLayer(32, 2, 96, activation=nn.GELU())


@pytest.mark.parametrize(
    ("make", "kind", "expected"),
    [
        (whisper, GELUActivation, [(128, -1), (128, -1)]),
        (wav2vec2, GELUActivation, [(16, -2), (24, -2), (32, -2), (128, -1)]),
        (swin, GELUActivation, [(64, -1), (128, -1)]),
        (convnext, GELUActivation, [(32, -1), (64, -1)]),
        (encoder_layer, nn.GELU, [(128, -1)]),
        (decoder_layer, nn.GELU, [(96, -1)]),
    ],
)
def test_zeros_of_the_configured_size_and_pytorchs_layers_tell_without_example_inputs(
    make: Callable[[], nn.Module], kind: type, expected: list[tuple[int, int]]
) -> None:
    model = make()
    activations.swap(model, kind, "tpgu")
    assert sorted(fed(module) for module in swapped(model)) == sorted(expected)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU()), [(6, -1), (5, -1)]),
        (nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), nn.Dropout()), nn.Linear(6, 2)), [(6, -1)]),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 6)), [(4, -1)]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 7, 3), nn.ReLU()), [(4, -3), (7, -3)]),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(4, 7)), [(4, -1)]),
    ],
)
def test_a_sequential_tells_without_a_pass(model: nn.Module, expected: list[tuple[int, int]]) -> None:
    activations.swap(model, nn.ReLU, "hermite:per=channel")
    assert [fed(module) for module in swapped(model)] == expected


class Gated(nn.Module):
    """gate, up and down with the activation registered last, as in Llama's MLP; a second, used nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down, self.act = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 4), nn.SiLU()
        self.unused = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act(self.gate(x)) * self.up(x))
        return y


class Twice(nn.Module):
    """One activation in places of different widths, and images whose layout no layer tells."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act, self.late = nn.Linear(4, 6), nn.Linear(6, 5), nn.ReLU(), nn.Mish()
        self.conv = nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.b(self.act(self.a(x))))
        z: Tensor = self.late(self.conv(y.reshape(1, 1, -1, 5)).transpose(0, 1))
        return z


class OwnFeedForward(nn.TransformerEncoderLayer):
    """Not what PyTorch's layer computes: the activation comes after linear2."""

    def _ff_block(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.linear2(self.linear1(x)))
        return y


@pytest.mark.parametrize(
    ("model", "kind", "arguments", "told"),
    [
        (Gated(), nn.SiLU, {}, "how many channels 'act' is fed is not certain; pass example_inputs"),
        (Gated(), nn.Tanh, {"example_inputs": torch.zeros(1, 4)}, "does not run 'unused'"),
        (Twice(), nn.ReLU, {"example_inputs": torch.zeros(1, 4)}, r"'act' is one module in several places, fed 5 .* and 6"),
        (Twice(), nn.Mish, {"example_inputs": torch.zeros(1, 4)}, r"which dimension .* 'late' .* pass channel_dim"),
        (Twice(), nn.Mish, {"example_inputs": torch.zeros(1, 4), "channel_dim": 4}, "channel_dim=4 is no dimension"),
        (Gated(), nn.SiLU, {"channel_dim": 1}, "pass example_inputs too"),
        (nn.Sequential(act := nn.ReLU(), nn.Linear(4, 6), act), nn.ReLU, {}, "places of different widths"),
        (OwnFeedForward(32, 2, 128, activation=nn.GELU()), nn.GELU, {}, "pass example_inputs"),
    ],
)
def test_what_is_not_certain_is_refused_at_the_swap(
    model: nn.Module, kind: type, arguments: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        activations.swap(model, kind, "tpgu", **arguments)  # type: ignore[arg-type]
    assert not swapped(model)
    assert activations.swap(model, kind, "hermite") >= 1, "per=layer needs no channels"


def test_a_given_dimension_is_used() -> None:
    model = Twice()
    activations.swap(model, nn.Mish, "tpgu", example_inputs=torch.zeros(1, 4), channel_dim={"late": 0})
    assert fed(swapped(model)[0]) == (4, -4)
    assert model(torch.ones(1, 4)).shape == (4, 1, 1, 5)


def test_another_number_of_channels_is_refused_at_the_forward() -> None:
    with pytest.raises(ValueError, match=r"for 32 channels in dimension -1, and was given \(2, 128\)"):
        activations.build("tpgu", 32)(torch.zeros(2, 128))


def test_no_fused_activation_goes_on_in_its_place() -> None:
    """nn.TransformerEncoderLayer in evaluation mode computes the GELU that it was built with, whatever `activation` is."""
    model, x = encoder_layer().eval(), torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    activations.swap(model, nn.GELU, "relu_squared")
    recorded = model(x.clone().requires_grad_()).detach()  # gradients take the slow path
    with torch.no_grad():
        torch.testing.assert_close(model(x), recorded)


@pytest.mark.parametrize(("old", "name"), [(nn.GELU, "gelu"), (nn.ReLU, "relu"), (nn.SiLU, "silu"), (nn.Tanh, None)])
def test_init_fit_matches_what_is_replaced(old: type[nn.Module], name: str | None) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), old()), torch.linspace(-3, 3, 61)[:, None].expand(-1, 6)
    activations.swap(model, old, "tropical_rational:degree=12,init=fit")
    fitted = model[1]
    assert isinstance(fitted, Activation)
    assert (fitted(x) - old()(x)).abs().max() < 0.01
    assert f"init=fit-{name}" in fitted.spec if name else "init=unit" in fitted.spec
    if name:
        by_name = nn.Sequential(nn.Linear(4, 6), old())
        activations.swap(by_name, old, f"tropical_rational:degree=12,init=fit-{name}")
        assert (by_name[1](x) - fitted(x)).abs().max() < 0.01


@pytest.mark.parametrize(
    ("old", "spec", "told"),
    [
        (nn.ReLU(), "hermite:init=fit-gelu", r"'0' is a ReLU, 0.17 away from gelu .* use init=fit"),
        (nn.SiLU(), "hermite:init=fit-relu", r"'0' is a SiLU"),
        (nn.Softmax(dim=-1), "hermite:init=fit", "is no function of each element"),
        (nn.PReLU(3), "hermite:init=fit", "is no function of each element"),
        (activations.build("tpgu", 3), "hermite:init=fit", "a shape for each channel"),
        (nn.ReLU(), "gelu:init=fit", "init=fit is for learnable activations"),
    ],
)
def test_fits_to_another_function_are_refused(old: nn.Module, spec: str, told: str) -> None:
    model = nn.Sequential(old)
    with pytest.raises(ValueError, match=told):
        activations.swap(model, type(old), spec)
    assert model[0] is old


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
