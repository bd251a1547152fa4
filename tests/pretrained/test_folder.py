"""GPT-2 folders in the variants that transformers writes: the same logits, or a refusal that names the field."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import activations
from config.schema import GPTConfig
from data import tokenizer
from model import GPT
from pretrained import folder, tokenizers

IDS = torch.randint(0, 257, (2, 40), generator=torch.Generator().manual_seed(0))
SIZES = {"n_layer": 3, "n_head": 2, "n_embd": 32, "n_positions": 64, "vocab_size": 257}


def theirs(path: Path, dtype: torch.dtype = torch.float32, trunk: bool = False, save: Any = None, **fields: Any) -> Tensor:
    """Save a GPT-2 of transformers and return its logits of IDS, computed in float32 from the weights as they are saved."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(**SIZES | fields, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8) if parameter.dim() == 2 else parameter.add_(0.1 * torch.randn_like(parameter))
        model.to(dtype)
        (model.transformer if trunk else model).save_pretrained(path, **save or {})
        logits: Tensor = model.float()(IDS).logits
    return logits


def agree(path: Path, expected: Tensor) -> None:
    with torch.no_grad():
        logits = GPT.from_pretrained(path).eval()(IDS)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "variant",
    [
        {"layer_norm_epsilon": 1e-2},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"n_inner": 128},
        {"activation_function": "swish"},
        {"activation_function": "relu2"},
        {"trunk": True},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float16},
        {"save": {"max_shard_size": "60KB"}},
    ],
    ids=str,
)
def test_the_logits_are_those_of_transformers(tmp_path: Path, variant: dict[str, Any]) -> None:
    expected = theirs(tmp_path, **variant)
    agree(tmp_path, expected)
    assert ("save" in variant) == (len(list(tmp_path.glob("*.safetensors"))) > 1)
    again = tmp_path / "again"
    GPT.from_pretrained(tmp_path).save_pretrained(again)
    agree(again, expected)


def rewritten(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        state = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
        save_file(change(state), path / "model.safetensors")

    return edit


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As OpenAI's file on the hub: no prefix, and causal masks."""
    masks = {f"h.{i}.attn.bias": torch.ones(64, 64).tril().view(1, 1, 64, 64) for i in range(3)}
    return {name.removeprefix("transformer."): tensor for name, tensor in state.items()} | masks


def to_bin(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"]  # as torch.save keeps the tied head
    torch.save(state, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def to_bin_shards(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    files = {name: f"pytorch_model-0000{index % 2 + 1}-of-00002.bin" for index, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: tensor for name, tensor in state.items() if files[name] == file}, path / file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    (path / "model.safetensors").unlink()


def n_ctx(path: Path) -> None:
    fields = json.loads((path / "config.json").read_text())
    fields["n_ctx"] = fields.pop("n_positions")
    (path / "config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "edit",
    [
        rewritten(old_names),
        rewritten(lambda state: state | {"lm_head.weight": state["transformer.wte.weight"].clone()}),
        rewritten(lambda state: state | {"lm_head.weight": state.pop("transformer.wte.weight")}),
        to_bin,
        to_bin_shards,
        n_ctx,
    ],
    ids=["old names", "head stored", "head instead of table", "bin", "bin shards", "n_ctx"],
)
def test_the_same_weights_in_other_files(tmp_path: Path, edit: Callable[[Path], None]) -> None:
    expected = theirs(tmp_path)
    edit(tmp_path)
    agree(tmp_path, expected)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tie_word_embeddings": False}, "lm_head.weight differs from the token table"),
        ({"n_inner": 64}, "n_inner 64"),
        ({"activation_function": "quick_gelu"}, "activation_function 'quick_gelu'"),
        ({"activation_function": "xielu"}, "activation_function 'xielu'"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
    ],
)
def test_what_computes_something_else_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    theirs(tmp_path, **fields)
    with pytest.raises(ValueError, match=told) as refusal:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model_type": "gpt_bigcode"}, "model_type 'gpt_bigcode'"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "architectures 'GPT2ForSequenceClassification'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"per_layer_config": {"0": {}}}, "per_layer_config"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder True"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon='small' is not a number"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon=0.0 must be positive"),
        ({"n_embd": "32"}, "n_embd='32' is not an integer"),
        ({"bias": False}, "bias is not zero"),
        ({"n_layer": 4}, r"h\.3\..* is missing"),
        ({"n_layer": 2}, r"h\.2\..* is unknown"),
        ({"n_positions": 128}, r"wpe\.weight is \(64, 32\), not \(128, 32\)"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_config_that_does_not_fit_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    theirs(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=told) as refusal:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(refusal.value)


def test_damaged_and_dangerous_weights_are_refused(tmp_path: Path) -> None:
    theirs(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    save_file(
        whole | {"transformer.h.0.attn.c_attn.weight": torch.zeros(32, 96, dtype=torch.int8)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"c_attn\.weight is torch\.int8"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights \(model\.safetensors, pytorch_model\.bin"):
        GPT.from_pretrained(tmp_path)
    torch.save({"run": Path}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin does not hold tensors alone"):
        GPT.from_pretrained(tmp_path)
    torch.save({"transformer.wte.weight": torch.zeros(1).expand(257, 32)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds 1 numbers, its config\.json asks for"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, told in (
        ({"a": "../model.safetensors"}, "no weights file of its folder"),
        ({"a": "gone.safetensors"}, r"gone\.safetensors is missing"),
        (["a"], "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=told):
            GPT.from_pretrained(tmp_path)
    save_file(whole, tmp_path / "model-1.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*whole, "other"], "model-1.safetensors")}))
    with pytest.raises(ValueError, match=r"model-1\.safetensors does not hold other"):
        GPT.from_pretrained(tmp_path)


def test_an_untied_model_without_its_head_is_refused(tmp_path: Path) -> None:
    theirs(tmp_path, trunk=True, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lm_head\.weight is missing, and tie_word_embeddings is false"):
        GPT.from_pretrained(tmp_path)


def test_dropout_is_read_where_it_is_one_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs(tmp_path, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2)
    assert GPT.from_pretrained(tmp_path).config.dropout == 0.2
    theirs(tmp_path, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.1)
    assert not caplog.text
    assert GPT.from_pretrained(tmp_path).config.dropout == 0.0
    assert "attn_pdrop 0.1; the model has one dropout for the three" in caplog.text


def test_a_field_outside_the_table_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = theirs(tmp_path, line_by_line=False, custom0="x")
    agree(tmp_path, expected)
    assert "ignored, as transformers' GPT-2 ignores it: custom0, line_by_line" in caplog.text


def test_the_table_names_every_field_that_transformers_knows() -> None:
    from transformers import GenerationConfig, GPT2Config

    config = GPT2Config()
    known = {*config.to_dict(), *(field.name for field in dataclasses.fields(GPT2Config)), "output_attentions"}
    assert known <= folder.FIELDS.keys()
    assert "vocab_size" in known
    for name in config.to_dict().keys() & {name for name, field in folder.FIELDS.items() if field.how == "one value"}:
        assert getattr(config, name) in (None, folder.FIELDS[name].value), name
    assert {"do_sample", "top_k"} <= folder.FIELDS.keys() & GenerationConfig._get_default_generation_params().keys()


def test_activation_names_mean_the_same_function_here_and_there() -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-40, 40, 20001, dtype=torch.float64).reshape(-1, 1)
    same = set()
    for name in ACT2FN:
        if name in ("prelu", "xielu"):  # they have parameters, which start elsewhere than ours
            continue
        expected = ACT2FN[name](x)
        for spec in ("gelu", "gelu:exact=true", "relu", "silu", "relu_squared"):
            if (activations.build(spec, 1)(x) - expected).abs().max() < 1e-9:
                same.add((name, spec))
    assert same == set(folder.ACTIVATIONS.items())


def test_positions_can_be_cropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = theirs(tmp_path)
    caplog.clear()
    GPT.from_pretrained(tmp_path, block_size=64)
    assert not caplog.messages
    gpt = GPT.from_pretrained(tmp_path, block_size=48).eval()
    assert caplog.messages == ["block_size 48: the first of the model's 64 positions are kept"]
    assert gpt.config.block_size == 48
    with torch.no_grad():
        assert (gpt(IDS) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert gpt.generate(IDS[:, :8], 60).shape == (2, 68)
    gpt.save_pretrained(tmp_path / "again")
    assert GPT.from_pretrained(tmp_path / "again").config == gpt.config
    with pytest.raises(ValueError, match="block_size 65 is above the 64 positions"):
        GPT.from_pretrained(tmp_path, block_size=65)


def test_transformers_refuses_a_learnable_activation_that_save_pretrained_wrote(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    config = GPT.from_pretrained((theirs(tmp_path / "a"), tmp_path / "a")[1]).config
    GPT(dataclasses.replace(config, activation="hermite:degree=3")).save_pretrained(tmp_path / "b")
    with pytest.raises(KeyError, match="hermite"):
        GPT2LMHeadModel.from_pretrained(tmp_path / "b")


def test_the_first_weights_file_counts(tmp_path: Path) -> None:
    """As in transformers: safetensors before .bin, whole before shards."""
    expected = theirs(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    agree(tmp_path, expected)


@pytest.fixture(autouse=True)
def warnings_of_folders(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pretrained")


def test_the_document_names_every_activation_and_refused_field() -> None:
    text = (Path(folder.__file__).parents[1] / "docs" / "huggingface.md").read_text()
    refused = {name for name, field in folder.FIELDS.items() if field.how == "one value"}
    assert all(f"`{name}`" in text for name in refused | folder.ACTIVATIONS.keys())


@pytest.mark.parametrize(("vocab_size", "end"), [(257, 256), (300, None)])
def test_end_of_text_is_written_where_it_is_known(tmp_path: Path, vocab_size: int, end: int | None) -> None:
    """transformers stops a generation there: in a padded vocabulary the last id is nothing."""
    from transformers import GPT2LMHeadModel

    GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=vocab_size, activation="gelu")).save_pretrained(
        tmp_path
    )
    assert GPT2LMHeadModel.from_pretrained(tmp_path).generation_config.eos_token_id == end


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """save_pretrained and the tokenizer's files replace what is there: a stranger's folder may link to files outside."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    out = tmp_path / "folder"
    out.mkdir()
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        (out / name).symlink_to(victim)
    GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=257)).save_pretrained(out)
    tokenizers.write(out, tokenizer.load("bytes"), 8)
    assert victim.read_text() == "mine"
    assert GPT.from_pretrained(out).config.n_embd == 8
    assert not any(path.is_symlink() for path in out.iterdir())


def test_a_disk_that_fails_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=257))
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        GPT(model.config, seed=1).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
