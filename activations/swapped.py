"""A transformers model after `swap`: its config records what was swapped, and `load_swapped` brings it back."""

import functools
import json
import sys
from collections.abc import Iterable
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
    dropping the coefficients; so does the model's class, called with such a config. Where no field names one (Bloom), the rates
    of dropout are overwritten: they are read by every model, and no text is a rate.
    """
    for config, modules, fields in [(m.config, _modules(m), _fields(m.config)) for m in _models(model)]:
        if modules:
            config.swapped_activations = {"modules": modules, "fields": fields}
            for field in fields:
                _set(config, field, MARK)


def check(model: nn.Module, places: Iterable[str]) -> None:
    """ValueError where a saved model could be loaded as if the modules of these names had not been swapped."""
    for part in _models(model):
        inside = {id(module) for module in part.modules()}
        if not _fields(part.config) and any(id(model.get_submodule(place)) in inside for place in places):
            raise ValueError(
                f"swap: the config of {type(part).__name__} names neither an activation nor a rate of dropout, so that "
                "from_pretrained would load a saved model without what was swapped; set config.activation to what it has"
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
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = fields.get("swapped_activations")
    if not found:
        raise ValueError(f"load_swapped: {folder} records no swapped activations; load it with transformers' from_pretrained")
    name = (fields.get("architectures") or [""])[0]
    kind: Any = getattr(transformers, name, None)
    if not hasattr(kind, "from_pretrained") or not issubclass(kind, transformers.PreTrainedModel):
        raise ValueError(f"load_swapped: config.json names the architecture {name!r}, which transformers does not have")
    for field, value in found["fields"].items():
        *parts, key = field.split(".")
        functools.reduce(lambda part, name: part[name], parts, fields)[key] = value
    config = kind.config_class.from_dict(fields)
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


def _models(model: nn.Module) -> list[Any]:
    """The outermost model of each config of transformers."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return []
    found: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, transformers.PreTrainedModel):
            found.setdefault(id(module.config), module)
    return list(found.values())


def _fields(config: Any) -> dict[str, Any]:
    """Dotted names of what `record` overwrites, in the config and its parts, and what that was before any swap."""
    return _naming(config) or _rates(config)


def _rates(config: Any) -> dict[str, Any]:
    """The rates of dropout."""
    earlier = (getattr(config, "swapped_activations", None) or {}).get("fields", {})
    rates = {key: earlier.get(key, value) for key, value in vars(config).items() if "drop" in key}
    return {key: value for key, value in rates.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def _naming(config: Any) -> dict[str, Any]:
    """The strings that name an activation."""
    from transformers import PreTrainedConfig
    from transformers.activations import ACT2FN

    earlier = (getattr(config, "swapped_activations", None) or {}).get("fields", {})
    found: dict[str, Any] = {}
    for key, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            found |= {f"{key}.{inner}": was for inner, was in _naming(value).items()}
        elif value == MARK and key in earlier:
            found[key] = earlier[key]
        elif isinstance(value, str) and ("act" in key or key == "feed_forward_proj") and value.split("-")[-1] in ACT2FN:
            found[key] = value
    return found


def _set(config: Any, field: str, value: str) -> None:
    *parts, key = field.split(".")
    vars(functools.reduce(getattr, parts, config))[key] = value  # setattr checks the type


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
