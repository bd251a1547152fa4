"""GPT-2 folders, as transformers and OpenAI publish them: config.json and weights, read and written.

A folder differs from `model.GPT` in five points. All of them are translated here, and nowhere else.
GPT-2 knows no gated MLP: a folder with one has the model type EXPORTED, which transformers refuses to load as GPT-2.

    matrices      transformers stores them as (in, out); ours are torch's (out, in)
    token table   ours is padded to a multiple of 64 rows
    names         some folders leave out the prefix `transformer.`
    biases        GPT-2 always has them; a model without is written with zeros
    attention     a scale other than 1/sqrt(D) goes into the queries' weights

FIELDS says of every field of a config.json what happens to it. A field outside the table only gives a warning: transformers
keeps every key that anybody ever wrote into a config, and its GPT-2 ignores those that it does not know.
"""

import dataclasses
import logging
import math
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from activations import registry
from config.arm import join, split
from config.foreign import check_size, load_safetensors, read_object
from config.schema import GPTConfig
from data.files import write_json, write_tensors

logger = logging.getLogger("pretrained")

# transformers' name -> ours, the same function (tests/pretrained compares them); the first of several is the one we write.
ACTIVATIONS = {
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu_accurate": "gelu", "gelu_python_tanh": "gelu",
    "gelu": "gelu:exact=true", "gelu_python": "gelu:exact=true", "relu": "relu", "silu": "silu", "swish": "silu",
    "relu2": "relu_squared",
}  # fmt: skip

WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")

BYTES_IDS, GPT2_IDS = 257, 50257
EXPORTED = "learnable_gpt2"  # the model type of export.py's folders
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_gate.weight", "mlp.c_proj.weight")
_TABLE, _POSITIONS = "transformer.wte.weight", "transformer.wpe.weight"
_HEADS = ("lm_head.weight", "transformer.lm_head.weight")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Field(NamedTuple):
    """What this project does with one field of a config.json."""

    how: Literal["read", "one value", "no effect", "ours"]
    why: str
    value: Any = None  # of "one value": the only one that is supported; absent or null is always allowed


def _all(names: str, how: Literal["read", "no effect", "ours"], why: str) -> dict[str, Field]:
    return dict.fromkeys(names.split(), Field(how, why))


FIELDS: dict[str, Field] = {
    **_all("n_layer n_head n_embd n_positions vocab_size", "read", "sizes"),
    **_all("n_ctx", "read", "the older name of n_positions, used where that is missing"),
    "model_type": Field("read", "only gpt2, and that of export.py"),
    "architectures": Field("read", "only GPT2LMHeadModel and GPT2Model: others have another head"),
    "activation_function": Field("read", "names in ACTIVATIONS, and our own specs"),
    "layer_norm_epsilon": Field("read", "the field of the same name"),
    **_all("resid_pdrop embd_pdrop attn_pdrop", "read", "dropout where the three are equal, else 0 and a warning"),
    **_all("scale_attn_weights scale_attn_by_inverse_layer_idx", "read", "multiplied into the queries' weights"),
    "n_inner": Field("read", "only 4 * n_embd, or what a gated MLP of ours has"),
    "tie_word_embeddings": Field("read", "a stored head must equal the token table"),
    "add_cross_attention": Field("one value", "the model has no encoder", False),
    "is_encoder_decoder": Field("one value", "the model has no encoder", False),
    "cross_attention_hidden_size": Field("one value", "the model has no encoder"),
    "pruned_heads": Field("one value", "all layers have n_head heads", {}),
    "per_layer_config": Field("one value", "all layers are alike"),
    "quantization_config": Field("one value", "weights are floating-point numbers"),
    "auto_map": Field("one value", "the folder's own code is not run"),
    "reorder_and_upcast_attn": Field("no effect", "the same function; it only rounds differently in 16 bits"),
    **_all("bias mlp mlp_init preactivation_std input_scale", "ours", "written by GPT.save_pretrained"),
    **_all("initializer_range", "no effect", "initial weights only"),
    **_all("bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id", "no effect", "generation and padding"),
    **_all("tokenizer_class prefix", "no effect", "the tokenizer's files decide"),
    **_all(
        "summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout num_labels id2label "
        "label2id problem_type finetuning_task task_specific_params",
        "no effect",
        "heads for other tasks",
    ),
    **_all(
        "use_cache output_attentions output_hidden_states output_past return_dict tie_last_hidden_states torchscript "
        "is_decoder chunk_size_feed_forward gradient_checkpointing attn_implementation _attn_implementation use_bfloat16",
        "no effect",
        "how it is computed or returned",
    ),
    **_all("_name_or_path name_or_path _commit_hash transformers_version", "no effect", "where it comes from"),
    **_all("dtype torch_dtype", "no effect", "weights become float32"),
    **_all(
        "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature "
        "top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
        "bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
        "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens",
        "no effect",
        "sampling defaults of old configs",
    ),
}  # fmt: skip


def locate(name_or_path: str | Path) -> Path:
    """The folder of that path, or a local copy of what the hub has under that name. Raises ValueError."""
    return Path(name_or_path) if Path(name_or_path).is_dir() else _download(str(name_or_path))


def read(folder: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The config, and every tensor under the name and in the orientation that `GPT.gpt2_state_dict` gives it.

    Raises ValueError for what is missing, damaged, or would compute something else than transformers does.
    """
    path = folder / "config.json"
    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    missing = [] if path.is_file() else ["config.json"]
    missing += [] if weights else ["weights (model.safetensors, pytorch_model.bin, or either in shards with its index)"]
    if weights is None or missing:
        raise ValueError(f"{folder} has no {' and no '.join(missing)}; give a GPT-2 folder, which holds both")
    fields = read_object(path)
    config = _config(path, fields)
    state = _one_table(_read_weights(weights), weights, fields.get("tie_word_embeddings", True) is not False)
    check_size(state.values(), config, weights)
    if not config.bias:
        if nonzero := sorted(name for name, tensor in state.items() if name.endswith("bias") and tensor.any()):
            raise ValueError(f"{weights}: {nonzero[0]} is not zero, and {path} says bias false; set it to true")
        state = {name: tensor for name, tensor in state.items() if not name.endswith("bias")}
    return config, _scaled(state, fields, config)


def cropped(config: GPTConfig, state: dict[str, Tensor], block_size: int) -> tuple[GPTConfig, dict[str, Tensor]]:
    """What `read` gives with the first `block_size` positions alone; says so. ValueError where there are fewer."""
    if block_size > config.block_size:
        raise ValueError(f"block_size {block_size} is above the {config.block_size} positions of the model")
    logger.warning("block_size %d: the first of the model's %d positions are kept", block_size, config.block_size)
    positions = {name: state[name][:block_size] for name in state if name == _POSITIONS}
    return dataclasses.replace(config, block_size=block_size), state | positions


def write(directory: Path, config: GPTConfig, state: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors; `state` is what `GPT.gpt2_state_dict` gives."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / "model.safetensors", with_biases(state, config))
    write_json(directory / "config.json", gpt2_fields(config) | own_fields(config))


def standard(config: GPTConfig, state: dict[str, Tensor]) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The config without muP, and its `gpt2_state_dict`: the same function, with muP's two factors in the weights.

    1/`width_ratio` of the logits goes into the last norm, and what the scale of attention is beside 1/sqrt(D) into the
    queries. Trained further, it is a standard model.
    """
    if not config.mup_base_width:
        return config, state
    plain, state = replace(config, mup_base_width=0, mup_base_heads=0), dict(state)
    for name in state:
        if name.startswith("transformer.ln_f."):
            state[name] = state[name] / config.width_ratio
        elif ".attn.c_attn." in name:
            state[name] = state[name].clone()
            state[name][..., : config.n_embd] *= config.attention_scale / plain.attention_scale
    return plain, state


def gpt2_fields(config: GPTConfig) -> dict[str, Any]:
    """The config.json of transformers' GPT2LMHeadModel.

    It refuses a learnable activation, which stands in it by its spec, and the gate of a gated MLP, which stands as gated(SPEC):
    only `model.GPT` and export.py's modelling file compute those. The model type of the latter is EXPORTED.
    """
    named = {registry.check(ours): theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    # End-of-text is the last id of the two tokenizers; of other vocabularies (padded ones, others' tokenizers) nobody knows it.
    end = config.vocab_size - 1 if config.vocab_size in (BYTES_IDS, GPT2_IDS) else None
    fields: dict[str, Any] = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True,
        "n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd, "n_positions": config.block_size,
        "vocab_size": config.vocab_size, "activation_function": named.get(config.activation, config.activation),
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "embd_pdrop": config.dropout, "attn_pdrop": config.dropout, "resid_pdrop": config.dropout,
        "bos_token_id": end, "eos_token_id": end,
    }  # fmt: skip
    if config.mlp == "gated":
        fields |= {"model_type": EXPORTED, "activation_function": join(config.mlp, config.activation)}
        fields["n_inner"] = config.mlp_width
    return fields


def is_gpt2(config: GPTConfig) -> bool:
    """Whether transformers' GPT-2 computes the same function, without code of ours."""
    return config.mlp == "plain" and gpt2_fields(config)["activation_function"] in ACTIVATIONS


def own_fields(config: GPTConfig) -> dict[str, Any]:
    """What a config.json says beside GPT-2's fields, so that `read` gives an equal GPTConfig."""
    return {name: getattr(config, name) for name, field in FIELDS.items() if field.how == "ours"}


def exported_name(name: str) -> str:
    """What an activation's tensor is called in a folder of export.py; see pretrained/modeling_learnable_gpt2.py."""
    return name.replace(".mlp.act.", ".mlp.act.bias_like.")


def with_biases(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """`state` with zeros for the biases that a model without them lacks and GPT-2 has."""
    if config.bias:
        return state
    widths = {"c_attn": 3 * config.n_embd, "c_fc": config.mlp_width, "c_gate": config.mlp_width}
    state = dict(state)
    for name in [n for n in state if n.endswith(".weight") and ("ln_" in n or "c_" in n)]:
        layer = name.split(".")[-2]
        state[name.removesuffix("weight") + "bias"] = torch.zeros(widths.get(layer, config.n_embd))
    return state


def to_gpt2(state: dict[str, Tensor], vocab_size: int) -> dict[str, Tensor]:
    """A GPT's own state_dict in GPT-2's orientation, its token table unpadded."""

    def converted(name: str, tensor: Tensor) -> Tensor:
        if name.endswith(_TRANSPOSED):
            return tensor.t().contiguous()
        return (tensor[:vocab_size] if name == _TABLE else tensor).contiguous()

    return {name: converted(name, tensor) for name, tensor in state.items()}


@torch.no_grad()
def load_gpt2(
    own: dict[str, Tensor],
    given: dict[str, Tensor],
    vocab_size: int,
    where: str,
    put: Callable[[Tensor, Tensor], object],
) -> None:
    """Copy `given`, as `to_gpt2` makes it, into a GPT's own state_dict, by put(own tensor, value).

    Raises ValueError that begins with `where` and names the first tensors that are missing, unknown or misshapen.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    expected |= {name: shape[::-1] for name, shape in expected.items() if name.endswith(_TRANSPOSED)}
    expected[_TABLE] = (vocab_size, *expected[_TABLE][1:])
    wrong = [f"{name} is missing" for name in expected.keys() - given.keys()]
    wrong += [f"{name} is unknown" for name in given.keys() - expected.keys()]
    wrong += [
        f"{n} is {tuple(given[n].shape)}, not {s}" for n, s in expected.items() if n in given and tuple(given[n].shape) != s
    ]
    if wrong:
        more = ", ..." if len(wrong) > 3 else ""
        raise ValueError(f"{where}: weights do not fit the model: {', '.join(sorted(wrong)[:3])}{more}")
    for name, tensor in given.items():
        put(own[name], tensor.t() if name.endswith(_TRANSPOSED) else tensor)


def put(own: Tensor, value: Tensor) -> None:
    """Copy a value into a tensor, or into its first rows where it has more: the token table is padded."""
    (own[: len(value)] if own.dim() else own).copy_(value)


def _config(path: Path, fields: dict[str, Any]) -> GPTConfig:
    if fields.get("model_type") == EXPORTED:  # its code is this project's, and here it is not needed
        fields = {name: value for name, value in fields.items() if name not in ("auto_map", "architectures")}
    elif fields.get("model_type") != "gpt2":
        raise ValueError(f"{path} says model_type {fields.get('model_type')!r}; only 'gpt2' is supported")
    _refuse(path, fields)
    if unknown := sorted(fields.keys() - FIELDS.keys()):
        logger.warning("%s: ignored, as transformers' GPT-2 ignores it: %s", path, ", ".join(unknown))
    if "n_positions" not in fields and "n_ctx" in fields:
        fields = fields | {"n_positions": fields["n_ctx"]}
    if missing := [name for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size") if name not in fields]:
        raise ValueError(f"{path} has no field {missing[0]!r}")
    values = {name: fields[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    values |= {name: fields[name] for name, field in FIELDS.items() if field.how == "ours" and name in fields}
    try:
        config = GPTConfig(
            **values,
            block_size=fields["n_positions"],
            activation=_activation(fields),
            layer_norm_epsilon=fields.get("layer_norm_epsilon", 1e-5),
            dropout=_dropout(path, fields),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if config.mlp == "gated" and fields.get("n_inner") != config.mlp_width:
        raise ValueError(
            f"{path}: n_inner {fields.get('n_inner')!r} is not supported; a gated MLP of n_embd {config.n_embd} is "
            f"{config.mlp_width} wide"
        )
    return config


def _refuse(path: Path, fields: dict[str, Any]) -> None:
    """Raises ValueError that names every field whose value would make another function."""
    wrong = [
        f"{name} {fields[name]!r} is not supported ({field.why})"
        for name, field in FIELDS.items()
        if field.how == "one value" and fields.get(name) not in (None, field.value)
    ]
    if others := set(fields.get("architectures") or []) - {"GPT2LMHeadModel", "GPT2Model"}:
        wrong.append(f"architectures {min(map(str, others))!r} is not supported; it is a GPT2LMHeadModel or GPT2Model")
    inner, width = fields.get("n_inner"), fields.get("n_embd")
    if inner is not None and isinstance(width, int) and fields.get("mlp") != "gated" and inner != 4 * width:
        wrong.append(f"n_inner {inner!r} is not supported; the MLP is 4 * n_embd = {4 * width} wide")
    if fields.get("mlp") == "gated" and fields.get("model_type") != EXPORTED:
        wrong.append(f"mlp 'gated' is not supported with model_type 'gpt2' (it is {EXPORTED!r} in folders of this project)")
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}; give another GPT-2 folder")


def _activation(fields: dict[str, Any]) -> str:
    name = str(fields.get("activation_function", "gelu_new"))
    if fields.get("mlp") == "gated":
        return registry.check_recorded(split(name)[1])
    if name not in ACTIVATIONS and not {":", registry.STAGE} & {
        *name
    }:  # a spec of ours that no name of theirs means has options
        raise ValueError(f"activation_function {name!r} is not supported; there are {', '.join(ACTIVATIONS)}")
    return registry.check_recorded(ACTIVATIONS.get(name, name))


def _dropout(path: Path, fields: dict[str, Any]) -> float:
    given = {name: fields.get(name, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(set(given.values())) == 1:
        return given["resid_pdrop"]  # type: ignore[no-any-return]  # GPTConfig checks it
    values = ", ".join(f"{name} {value}" for name, value in given.items())
    logger.warning("%s: %s; the model has one dropout for the three, and it is 0. Evaluation is the same.", path, values)
    return 0.0


def _scaled(state: dict[str, Tensor], fields: dict[str, Any], config: GPTConfig) -> dict[str, Tensor]:
    """Scale the queries so that q k^T / sqrt(D), which `model.attention` computes, is what the config asks for."""
    unscaled = math.sqrt(config.n_embd / config.n_head) if fields.get("scale_attn_weights", True) is False else 1.0
    by_layer = bool(fields.get("scale_attn_by_inverse_layer_idx", False))
    if unscaled == 1.0 and not by_layer:
        return state
    logger.info("the folder's scale of attention is multiplied into the queries' weights, which changes no output")
    state = dict(state)
    for layer in range(config.n_layer):
        for name in (f"transformer.h.{layer}.attn.c_attn.{part}" for part in ("weight", "bias")):
            if name in state and state[name].size(-1) == 3 * config.n_embd:
                tensor = state[name].to(torch.float32, copy=True)
                tensor[..., : config.n_embd] *= unscaled / (layer + 1 if by_layer else 1)
                state[name] = tensor
    return state


def _one_table(state: dict[str, Tensor], path: Path, tied: bool) -> dict[str, Tensor]:
    """All names with their prefix, without causal masks and without the head, which must be the token table."""
    state = {n if n.startswith("transformer.") or n in _HEADS else f"transformer.{n}": t for n, t in state.items()}
    state = {n.replace(".mlp.act.bias_like.", ".mlp.act."): t for n, t in state.items()}  # of export.py
    state = {n: t for n, t in state.items() if not n.endswith((".attn.bias", ".attn.masked_bias"))}
    if strange := next((n for n, t in state.items() if t.dtype not in _DTYPES), None):
        raise ValueError(f"{path}: {strange} is {state[strange].dtype}; weights are floating-point numbers of 16 bits or more")
    heads = [state.pop(name) for name in _HEADS if name in state]
    if tied and heads:
        state.setdefault(_TABLE, heads[0])  # files that store shared tensors once may keep either name
    table = state.get(_TABLE)
    same = table is not None and all(head.shape == table.shape and torch.equal(head, table) for head in heads)
    if (heads or not tied) and not (heads and same):
        what = "differs from the token table" if heads else "is missing, and tie_word_embeddings is false"
        raise ValueError(f"{path}: lm_head.weight {what}; this model has one matrix for both, give a folder that has too")
    return state


def _read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a weights file, or of the shards that an index names. Raises ValueError."""
    if path.suffix != ".json":
        return load_safetensors(path) if path.suffix == ".safetensors" else _load_bin(path)
    index = read_object(path).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise ValueError(f"{path} has no weight_map of names; copy it again")
    state: dict[str, Tensor] = {}
    for name in dict.fromkeys(index.values()):
        shard = path.parent / name
        if Path(name).name != name or shard.suffix not in (".safetensors", ".bin"):
            raise ValueError(f"{path} names {name!r}, which is no weights file of its folder; copy the folder again")
        if not shard.is_file():
            raise ValueError(f"{shard} is missing, and {path.name} names it; copy the folder again")
        state |= {n: t for n, t in _read_weights(shard).items() if index.get(n, name) == name}
    if missing := index.keys() - state.keys():
        raise ValueError(f"{path.parent / index[min(missing)]} does not hold {min(missing)}; copy the folder again")
    return state


def _load_bin(path: Path) -> dict[str, Tensor]:
    """A file of torch.save, read with weights_only: it runs no code."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch.save compresses nothing
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError(f"{path} unpacks to more than it is; use another one")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} does not hold tensors alone, or is damaged ({why}); use another one") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} does not hold tensors alone; use another one")
    return dict(_named(state))


def _named(state: dict[Any, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in state.items():
        yield str(name), tensor.detach()


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    safetensors = ["config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
    bins = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*safetensors, *TOKENIZER_FILES]))
        if not any((folder / file).is_file() for file in WEIGHT_FILES[:2]):
            folder = Path(snapshot_download(name, allow_patterns=bins))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name!r} is neither a folder nor to be had from the hub ({reason}); give a GPT-2 folder") from None
    return folder
