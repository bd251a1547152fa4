"""A transformers model after `swap`: its config records what was swapped, and `load_swapped` brings it back."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from activations import registry
from activations.activation import Activation

MARK = "swapped, load with activations.load_swapped"  # no activation that transformers knows: from_pretrained raises KeyError


def record(model: nn.Module) -> None:
    """Write into the config of every transformers model in `model` which of its modules are ours.

    `config.swapped_activations` holds {"modules": {name: {"spec", "channels", "channel_dim"}}, "fields": {name: what it was}}.
    The fields that name activations are overwritten, so that `from_pretrained` alone raises instead of building GELUs and
    dropping the coefficients. A model whose config has no such field (Bloom) cannot be protected: a warning says so.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return
    inside: dict[int, Any] = {}  # the outermost model of each config
    for module in model.modules():
        if isinstance(module, transformers.PreTrainedModel):
            inside.setdefault(id(module.config), module)
    for config, modules, fields in [(m.config, _modules(m), _fields(m.config)) for m in inside.values()]:
        if not modules:
            continue
        config.swapped_activations = {"modules": modules, "fields": fields}
        for field in fields:
            _set(config, field, MARK)
        if not fields:
            warnings.warn(
                f"the config of {config.model_type} names no activation: from_pretrained alone would load a saved model "
                "without what was swapped; use activations.load_swapped",
                stacklevel=3,
            )


def load_swapped(folder: str | Path) -> nn.Module:
    """The transformers model that was swapped and saved by `save_pretrained` to `folder`, with its learned activations.

    On the CPU, in evaluation mode, of the class that `architectures` in config.json names. ValueError where the folder has no
    record of a swap, an unknown architecture, an activation that is not registered, or weights that do not fit it.
    """
    import transformers
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"load_swapped: {folder} has no config.json; give a folder that save_pretrained wrote")
    config = transformers.AutoConfig.from_pretrained(folder)
    found = getattr(config, "swapped_activations", None)
    if not found:
        raise ValueError(f"load_swapped: {folder} records no swapped activations; load it with transformers' from_pretrained")
    name = (config.architectures or [""])[0]
    kind: Any = getattr(transformers, name, None)
    if not hasattr(kind, "from_pretrained") or not issubclass(kind, transformers.PreTrainedModel):
        raise ValueError(f"load_swapped: config.json names the architecture {name!r}, which transformers does not have")
    for field, value in found["fields"].items():
        _set(config, field, value)
    weights: dict[str, Tensor] = {}
    for file in _shards(folder):
        weights |= load_file(file)
    built = {name: _build(entry) for name, entry in found["modules"].items()}
    states = {name: _pop(weights, f"{name}.") for name in built}  # transformers would report them as unexpected
    model: Any = kind.from_pretrained(None, config=config, state_dict=weights)
    for name, module in built.items():
        if lacking := module.state_dict().keys() ^ states[name].keys():
            raise ValueError(f"load_swapped: the weights of {name!r} are not those of {module.spec}: {sorted(lacking)}")
        module.load_state_dict(states[name])
        _put(model, name, module.train(model.training))
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    record(model)
    return cast(nn.Module, model)


def _modules(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What each of our modules is, by name."""
    return {
        name: {"spec": module.spec, "channels": module.channels, "channel_dim": module.channel_dim}
        for name, module in model.named_modules()
        if isinstance(module, Activation)
    }


def _fields(config: Any) -> dict[str, str]:
    """Dotted names of the config's strings that name an activation, its parts' included, and what they were before any swap."""
    from transformers import PreTrainedConfig
    from transformers.activations import ACT2FN

    earlier = (getattr(config, "swapped_activations", None) or {}).get("fields", {})
    found: dict[str, str] = {}
    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found |= {f"{key}.{inner}": was for inner, was in _fields(value).items()}
        elif value == MARK and key in earlier:
            found[key] = earlier[key]
        elif isinstance(value, str) and ("act" in key or key == "feed_forward_proj") and value.split("-")[-1] in ACT2FN:
            found[key] = value
    return found


def _set(config: Any, field: str, value: str) -> None:
    *parts, key = field.split(".")
    for part in parts:
        config = getattr(config, part)
    setattr(config, key, value)


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"load_swapped: {folder} has no {name!r}; give a folder that save_pretrained wrote")
    return [folder / name for name in names]


def _build(entry: dict[str, Any]) -> Activation:
    module = registry.build(registry.check_recorded(entry["spec"]), entry["channels"])
    module.channel_dim = entry["channel_dim"]
    return module


def _pop(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): weights.pop(key) for key in list(weights) if key.startswith(prefix)}


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, module)
