"""Replace the activations of any model: ours, a transformers GPT-2 or ConvNeXt, anything made of modules."""

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from activations import channels, registry, swapped
from activations.activation import Activation, Learnable
from activations.channels import Channels
from activations.fit import fit
from activations.target import TARGETS

Function = Callable[[Tensor], Tensor]
ALIKE = 0.05  # quick GELU differs from GELU by 0.02 on |x| <= 3, SiLU and ReLU by 0.19 and 0.17


def swap(
    model: nn.Module,
    old: type | tuple[type, ...],
    spec: str,
    input_std: float | Mapping[str, float] | None = None,
    *,
    example_inputs: object = None,
    channel_dim: int | Mapping[str, int] | None = None,
) -> int:
    """Put `spec` in the place of every module of class `old`, in place; returns how many modules were replaced.

    input_std: standard deviation of the inputs, one for all or by module name (`telemetry.input_stds` measures them); None: 1,
    and fits take the family's default weight instead.
    init=fit in `spec` matches each new module to the one that it replaces; init=fit-gelu, fit-silu and fit-relu do the same and
    refuse to replace another function.
    example_inputs: what one call of the model takes: a tensor, a tuple of positional or a mapping of keyword arguments. Needed
    where `spec` has parameters for each channel (per=channel, rational's groups) and the channels are not certain without:
    those of a Sequential, of PyTorch's transformer layers and of our own activations are, and those of transformers' models of
    text, images, wav2vec 2.0 and Whisper, which run zeros of their config's size. One forward pass in evaluation mode.
    channel_dim: which dimension of the activation's input holds the channels, one for all or by module name, where the pass
    cannot tell (it follows convolutions and linear layers through norms, pooling, dropout, sums and products).
    A module that is used in several places stays shared. Device and dtype are those of the nearest parameters, the training
    mode is that of the replaced module. A transformers model's config records what was swapped: `load_swapped` reads it, and
    `from_pretrained` alone, or another model of that config, raises.

    ValueError, with the model as it was: no module is of class `old` (names the activations that it has), a bad spec, channels
    that are needed and not certain, a fit to another function than the replaced one, a transformers model whose config has no
    field that would say so, a spec of the depth (`A;B`) or per=model, which a model's own layers are needed for.
    """
    if len(registry.stages(spec)) > 1:
        raise ValueError(f"swap: {spec!r} names one activation for each part of the depth; swap each part by its own")
    spec, fits_old = _without_fit(spec)
    spec = registry.check(spec)
    if registry.options(spec).get("per") == "model":
        raise ValueError("swap: per=model is for models that share coefficients as they are built, as GPT does; use per=layer")
    places = [(name, parent, key) for name, parent, key in _places(model) if isinstance(getattr(parent, key), old)]
    if not places:
        raise ValueError(f"swap: the model has no {_names(old)}; its activations are: {_present(model)}")
    by_name = {name: getattr(parent, key) for name, parent, key in places}
    swapped.check(model, by_name)
    fed = channels.find(model, by_name, example_inputs, channel_dim) if _needs_channels(spec) else {}
    # All are built before any is replaced: an error leaves the model as it was.
    new: dict[int, Activation] = {}
    for name, module in by_name.items():
        if id(module) not in new:
            new[id(module)] = _replacement(model, name, spec, fits_old, input_std, fed.get(name), layer=len(new))
        elif name in fed and (fed[name].size, fed[name].dim) != (new[id(module)].channels, new[id(module)].channel_dim):
            raise ValueError(f"swap: {name!r} is one module in places of different widths; use per=layer")
    for _, parent, key in places:
        setattr(parent, key, new[id(getattr(parent, key))])
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # or its fused GELU or ReLU would go on in evaluation mode
    swapped.record(model)
    return len(new)


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every (full name, parent, attribute) that holds a module, shared modules at each of their places."""
    for prefix, parent in model.named_modules():
        for key in parent._modules:  # named_children would list a shared module once
            yield f"{prefix}.{key}" if prefix else key, parent, key


def _without_fit(spec: str) -> tuple[str, bool]:
    """`init=fit` names no function, so it is no option of a module: the spec without it, and whether it was there."""
    name, text = registry.split(spec)
    options = text.split(",") if text else []
    kept = [option for option in options if "".join(option.split()) != "init=fit"]
    return ":".join([name, ",".join(kept)]) if kept else name, len(kept) < len(options)


def _needs_channels(spec: str) -> bool:
    """Whether the parameters depend on the channels."""
    options = registry.options(spec)
    return options.get("per") == "channel" or options.get("groups", 1) > 1


def _replacement(
    model: nn.Module,
    name: str,
    spec: str,
    fits_old: bool,
    input_std: float | Mapping[str, float] | None,
    fed: Channels | None,
    layer: int,
) -> Activation:
    if isinstance(input_std, Mapping):
        if name not in input_std:
            raise ValueError(f"swap: input_std has no entry for {name!r}; give one a module, or one number for all")
        input_std = input_std[name]
    old = model.get_submodule(name)
    count = fed.size if fed else old.channels if isinstance(old, Activation) else 1
    number = old.layer if isinstance(old, Activation) else layer  # ours knows its place
    module = registry.build(spec, count, 1.0 if input_std is None else input_std, number)
    if fed:
        module.channel_dim = fed.dim
    if isinstance(module, Learnable):
        aim = str(module.choices["init"]).removeprefix("fit-")
        if fits_old:
            function = _function(old, name)
            aim = next((key for key, target in TARGETS.items() if _distance(function, target) < ALIKE), "")
            fit(module, function, input_std)
            if aim:
                module.choices["init"] = f"fit-{aim}"
                module.spec = registry.changed(module.spec, init=f"fit-{aim}")
        elif aim in TARGETS:
            if not isinstance(old, Learnable):  # a learned shape is no function of a name
                _require_alike(old, name, aim)
            if input_std is None:
                fit(module, TARGETS[aim])
    elif fits_old:
        raise ValueError(f"swap: init=fit is for learnable activations, not {spec!r}; leave it out")
    like = _nearest_parameter(model, name)
    module.train(old.training)
    return module if like is None else module.to(like.device, like.dtype)


def _function(old: nn.Module, name: str) -> Function:
    """What `old` computes, for float64 tensors. ValueError where that is not one function of each element."""
    if isinstance(old, Activation):
        values, s = old.values(), float(old.unit)
        if any(value.dim() == 2 for value in values.values()):
            raise ValueError(f"swap: {name!r} has a shape for each channel, and a fit has one target; use another init")
        return lambda x: s * old.evaluate(values, x / s)
    double = copy.deepcopy(old).cpu().double().eval()
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)
    with torch.no_grad():
        if (
            any(p.numel() > 1 for p in double.parameters())
            or double(x).shape != x.shape
            or not (double(x)[5:6] == double(x[5:6]))
        ):
            raise ValueError(
                f"swap: {name!r}, a {type(old).__name__}, is no function of each element; a fit has no target there"
            )
    return double


def _require_alike(old: nn.Module, name: str, aim: str) -> None:
    if (distance := _distance(_function(old, name), TARGETS[aim])) > ALIKE:
        raise ValueError(
            f"swap: init=fit-{aim} would change the function: {name!r} is a {type(old).__name__}, {distance:.2g} away from "
            f"{aim} on |x| <= 3; use init=fit to match what is replaced"
        )


def _distance(function: Function, other: Function) -> float:
    x = torch.linspace(-3, 3, 121, dtype=torch.float64)
    with torch.no_grad():
        return float((function(x) - other(x)).abs().max())


def _nearest_parameter(model: nn.Module, name: str) -> nn.Parameter | None:
    """Of the smallest enclosing module that has parameters."""
    parts = name.split(".")
    enclosing = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) - 1, -1, -1))
    return next((p for module in enclosing for p in module.parameters() if p.is_floating_point()), None)


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
