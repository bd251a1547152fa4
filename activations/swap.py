"""Replace the activations of any model: ours, a transformers GPT-2 or ConvNeXt, anything made of modules."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from activations import registry
from activations.activation import Activation, Learnable
from activations.fit import fit
from activations.target import gelu


def swap(
    model: nn.Module, old: type | tuple[type, ...], spec: str, input_std: float | Mapping[str, float] | None = None
) -> int:
    """Put `spec` in the place of every module of class `old`, in place; returns how many modules were replaced.

    input_std: standard deviation of the inputs, one for all or by module name (`telemetry.input_stds` measures them); None: 1,
    and `init=fit-gelu` takes the family's default weight instead. A module that is used in several places stays shared. Device,
    dtype and training mode are the neighbours'. Channels come from the neighbouring layer, and only where the spec has
    parameters a channel (the last dimension must be the channels). ValueError when no module is of class `old`, with the
    classes that are.
    """
    spec = registry.check(spec)
    places = [(name, parent, key) for name, parent, key in _places(model) if isinstance(getattr(parent, key), old)]
    if not places:
        raise ValueError(f"swap: the model has no {_names(old)}; its activations are: {_present(model)}")
    # All are built before any is replaced: an error leaves the model as it was.
    new: dict[int, Activation] = {}
    for name, parent, key in places:
        module = getattr(parent, key)
        if id(module) not in new:
            new[id(module)] = _replacement(model, name, spec, input_std)
            new[id(module)].train(module.training)
    for _, parent, key in places:
        setattr(parent, key, new[id(getattr(parent, key))])
    return len(new)


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every (full name, parent, attribute) that holds a module, shared modules at each of their places."""
    for prefix, parent in model.named_modules():
        for key in parent._modules:  # named_children would list a shared module once
            yield f"{prefix}.{key}" if prefix else key, parent, key


def _replacement(model: nn.Module, name: str, spec: str, input_std: float | Mapping[str, float] | None) -> Activation:
    if isinstance(input_std, Mapping):
        if name not in input_std:
            raise ValueError(f"swap: input_std has no entry for {name!r}; give one a module, or one number for all")
        input_std = input_std[name]
    channels, neighbour = _channels(model, name)
    if _is_per_channel(spec) and not channels:
        raise ValueError(
            f"swap: no neighbouring layer tells the channels of {name!r}; use per=layer, or activations.build by hand"
        )
    module = registry.build(spec, channels or 1, 1.0 if input_std is None else input_std)
    if input_std is None and isinstance(module, Learnable) and module.choices["init"] == "fit-gelu":
        fit(module, gelu)
    like = next(iter(neighbour.parameters()), None) if neighbour is not None else None
    return module if like is None else module.to(like.device, like.dtype)


def _is_per_channel(spec: str) -> bool:
    """Whether the shapes of its parameters depend on the channels."""
    return any("per=channel" in part or part.startswith("groups=") for part in spec.partition(":")[2].split(","))


def _channels(model: nn.Module, name: str) -> tuple[int, nn.Module | None]:
    """Size of the last dimension that module `name` gets, and the layer that tells it; 0 where none does.

    Looked for in the smallest enclosing module that has linear layers: the output of the one before, where there is one after
    as well, or no other, or the module is a Sequential. Registered after all of them (transformers' GPT2MLP), or before, it is
    what the last one takes in.
    """
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        root = model.get_submodule(".".join(parts[:depth]))
        inside = ".".join(parts[depth:])
        order = [key for key, _ in root.named_modules(remove_duplicate=False)]
        position = order.index(inside)
        layers = [(order.index(key), module, widths) for key, module in root.named_modules() if (widths := _widths(module))]
        before = [(module, widths) for at, module, widths in layers if at < position]
        after = [(module, widths) for at, module, widths in layers if at > position]
        if before and (after or len(before) == 1 or isinstance(root, nn.Sequential)):
            module, (_, width) = before[-1]
            return width, module
        if before or after:
            module, (width, _) = (after or before)[-1]
            return width, module
    return 0, None


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a layer that acts on the last dimension: torch's Linear, or transformers' Conv1D (weight (in, out))."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if hasattr(module, "nf") and isinstance(weight, torch.Tensor) and weight.dim() == 2:
        return weight.shape[0], weight.shape[1]
    return None


def _present(model: nn.Module) -> str:
    """Classes of the modules that look like activations: no children, no parameters of their own unless ours."""
    found = {
        f"{type(module).__module__}.{type(module).__name__}"
        for module in model.modules()
        if isinstance(module, Activation)
        or ("activation" in type(module).__module__ and not isinstance(module, nn.MultiheadAttention))
    }
    return ", ".join(sorted(found)) or "none (functional calls cannot be swapped)"


def _names(old: type | tuple[type, ...]) -> str:
    return " or ".join(kind.__name__ for kind in (old if isinstance(old, tuple) else (old,)))
