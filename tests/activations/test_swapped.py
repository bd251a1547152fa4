"""A swapped transformers model: saved, brought back with what it learned, and never loaded as if it had not been swapped."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.activations import NewGELUActivation, QuickGELUActivation

import activations
from activations.activation import Activation

TOKENS = torch.arange(12)[None] + 3
SIZES = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=32, **SIZES)
    return transformers.GPT2LMHeadModel(config).eval()


def t5() -> Any:
    torch.manual_seed(0)
    return transformers.T5Model(transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2, **SIZES)).eval()


def clip() -> Any:
    torch.manual_seed(0)
    half = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(text_config=half | SIZES, vision_config=half | {"image_size": 16, "patch_size": 8})
    return transformers.CLIPModel(config).eval()


def train_a_little(model: nn.Module) -> None:
    """Move every coefficient, so that a freshly built activation would not do."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if activations.is_coefficient(name, parameter):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


INPUTS = {
    "gpt2": {"input_ids": TOKENS},
    "t5": {"input_ids": TOKENS, "decoder_input_ids": TOKENS},
    "clip": {"input_ids": TOKENS, "pixel_values": torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)},
}


@pytest.mark.parametrize(
    ("make", "old", "spec", "field"),
    [
        (gpt2, NewGELUActivation, "hermite:degree=3,per=channel", "activation_function"),
        (t5, nn.ReLU, "rational:groups=1", "feed_forward_proj"),
        (clip, QuickGELUActivation, "tpgu:per=layer", "text_config.hidden_act"),
    ],
)
def test_round_trip(make: Any, old: type, spec: str, field: str, tmp_path: Path) -> None:
    model, inputs = make(), INPUTS[make.__name__]
    assert activations.swap(model, old, spec) == 2
    train_a_little(model)
    expected = model(**inputs)[0]
    model.save_pretrained(tmp_path / "once")
    with pytest.raises(KeyError, match=r"activations\.load_swapped"):
        type(model).from_pretrained(tmp_path / "once")
    assert field in model.config.swapped_activations["fields"]
    once = activations.load_swapped(tmp_path / "once")
    assert type(once) is type(model)
    assert not once.training
    torch.testing.assert_close(once(**inputs)[0], expected, rtol=1e-6, atol=1e-6)
    once.save_pretrained(tmp_path / "twice")
    twice = activations.load_swapped(tmp_path / "twice")
    torch.testing.assert_close(twice(**inputs)[0], expected, rtol=1e-6, atol=1e-6)
    assert all(
        p.dtype == torch.float32 for module in twice.modules() if isinstance(module, Activation) for p in module.parameters()
    )


def test_shards_half_precision_and_generation_settings_come_back(tmp_path: Path) -> None:
    model = gpt2()
    activations.swap(model, NewGELUActivation, "fourier")
    model.to(torch.bfloat16)
    train_a_little(model)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded: Any = activations.load_swapped(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert loaded.generation_config.max_new_tokens == 7


def test_a_second_swap_is_what_is_recorded(tmp_path: Path) -> None:
    model = gpt2()
    activations.swap(model, NewGELUActivation, "hermite")
    activations.swap(model, Activation, "relu_squared")
    model.save_pretrained(tmp_path)
    assert torch.equal(activations.load_swapped(tmp_path)(TOKENS).logits, model(TOKENS).logits)
    assert model.config.swapped_activations["fields"] == {"activation_function": "gelu_new"}


def bloom() -> Any:
    torch.manual_seed(0)
    return transformers.BloomModel(transformers.BloomConfig(vocab_size=100, hidden_size=32, n_layer=1, n_head=2)).eval()


def test_a_config_that_names_no_activation_loses_its_dropout_instead(tmp_path: Path) -> None:
    model = bloom()
    kind = type(model.h[0].mlp.gelu_impl)
    activations.swap(model, kind, "hermite:degree=5")
    activations.swap(model, Activation, "fourier")  # what is recorded stays what was
    train_a_little(model)
    assert model.config.swapped_activations["fields"] == {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    model.save_pretrained(tmp_path)
    for load in (transformers.BloomModel.from_pretrained, transformers.AutoConfig.from_pretrained):
        with pytest.raises(Exception, match=r"activations\.load_swapped"):
            load(tmp_path)
    loaded: Any = activations.load_swapped(tmp_path)
    assert torch.equal(loaded(TOKENS)[0], model(TOKENS)[0])
    with pytest.raises(TypeError):
        transformers.BloomModel(model.config).eval()(TOKENS)


def test_another_model_of_a_swapped_config_is_refused() -> None:
    model = gpt2()
    activations.swap(model, NewGELUActivation, "hermite")
    with pytest.raises(KeyError, match=r"activations\.load_swapped"):
        transformers.GPT2LMHeadModel(model.config)
    assert torch.equal(copy.deepcopy(model)(TOKENS).logits, model(TOKENS).logits)


class Bare(transformers.PreTrainedModel):  # type: ignore[misc]
    """A model whose config has nothing that a swap could be told in."""

    config_class = transformers.PreTrainedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.act = nn.GELU()
        self.post_init()


def test_a_config_that_cannot_say_what_was_swapped_is_refused() -> None:
    model = nn.Sequential(Bare(transformers.PreTrainedConfig()), nn.GELU())
    with pytest.raises(ValueError, match="config of Bare names neither an activation nor a rate of dropout"):
        activations.swap(model, nn.GELU, "hermite")
    assert isinstance(model[0].act, nn.GELU)


def test_what_cannot_be_brought_back_is_one_line(tmp_path: Path) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path / "plain")
    activations.swap(model, NewGELUActivation, "hermite")
    model.save_pretrained(tmp_path / "swapped")
    config = json.loads((tmp_path / "swapped" / "config.json").read_text())

    def fails(told: str, folder: str = "swapped", **changes: object) -> None:
        if changes:
            (tmp_path / folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=told) as caught:
            activations.load_swapped(tmp_path / folder)
        assert "\n" not in str(caught.value)

    fails("no config.json", "nowhere")
    fails("records no swapped activations", "plain")
    fails("'Elsewhere', which transformers does not have", architectures=["Elsewhere"])
    record = config["swapped_activations"]
    renamed = {name: entry | {"spec": "hermit"} for name, entry in record["modules"].items()}
    fails("'hermit' is not known", swapped_activations=record | {"modules": renamed})
    weights = load_file(tmp_path / "swapped" / "model.safetensors")
    (tmp_path / "swapped" / "config.json").write_text(json.dumps(config))
    save_file({k: v for k, v in weights.items() if "coefficients" not in k}, tmp_path / "swapped" / "model.safetensors")
    fails(r"weights of 'transformer.h.0.mlp.act' are not those of hermite.*coefficients")


@pytest.mark.parametrize("spec", ["hermite:per=channel", "tpgu"])
def test_is_coefficient_names_what_other_trainers_must_not_decay(spec: str) -> None:
    """After copying, moving, loading and pickling too, and nothing else."""
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), activations.build(spec, 6), nn.Linear(6, 2))

    def found(model: nn.Module) -> set[str]:
        return {name for name, p in model.named_parameters() if activations.is_coefficient(name, p)}

    expected = {name for name, _ in model.named_parameters() if name.startswith("2.")}
    assert expected
    assert found(model) == expected
    assert found(copy.deepcopy(model)) == expected
    assert found(pickle.loads(pickle.dumps(model))) == expected
    assert found(copy.deepcopy(model).to("meta")) == expected
    assert found(model.double()) == expected
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    assert found(model) == expected
    groups = activations.parameter_groups(model, lr=1.0, weight_decay=0.1)
    [ours] = [group for group in groups if group["name"] == "activation"]
    assert {id(p) for p in ours["params"]} == {id(p) for n, p in model.named_parameters() if n in expected}
