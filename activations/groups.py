"""Optimizer groups that know about activations, and how other trainers can tell their parameters."""

from typing import Any

from torch import Tensor, nn

from activations.activation import Activation


def is_coefficient(name: str, parameter: Tensor) -> bool:
    """Whether (name, parameter), as `model.named_parameters()` gives them, is a parameter of one of our activations.

    For trainers that sort parameters themselves. Two rules hold for these: no weight decay (it would undo the gain), and no
    optimizer for weight matrices such as Muon, although a table of coefficients per channel has two dimensions:

        hidden = [p for n, p in model.named_parameters() if p.dim() == 2 and not activations.is_coefficient(n, p)]

    The parameter decides, by a mark that survives moving, copying, loading and wrapping; `name` is not looked at. For the
    Trainer of transformers pass `optimizers=(AdamW(parameter_groups(model, lr, weight_decay)), None)`: it decays whatever is no
    bias and no norm by name.
    """
    return bool(getattr(parameter, "is_coefficient", False))


def tensor_names(model: nn.Module) -> set[str]:
    """The names in `model.state_dict()` of all parameters and buffers that belong to an `Activation`."""
    modules = [(prefix, module) for prefix, module in model.named_modules() if isinstance(module, Activation)]
    return {f"{prefix}.{name}" if prefix else name for prefix, module in modules for name in module.state_dict()}


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, activation_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """AdamW groups {"name", "params", "lr", "weight_decay", "lr_scale"} that partition `model.parameters()`.

    "decay": everything of two dimensions or more, as nanoGPT. "no_decay": norms and biases. "activation": every parameter of an
    `Activation`, by declaration and not by rank, since a per-channel table has two dimensions; its learning rate is
    lr * lr_scale, lr_scale = `activation_lr_scale` times what the family declares (one group a value).
    Empty groups are left out; a tied tensor is listed once, where it first appears.
    """
    scale_of = {
        id(parameter): activation_lr_scale * module.lr_scale
        for module in model.modules()
        if isinstance(module, Activation)
        for parameter in module.parameters()
    }
    groups: dict[tuple[str, float], list[nn.Parameter]] = {("decay", 1.0): [], ("no_decay", 1.0): []}
    for parameter in model.parameters():
        if id(parameter) in scale_of:
            groups.setdefault(("activation", scale_of[id(parameter)]), []).append(parameter)
        else:
            groups["decay" if parameter.dim() >= 2 else "no_decay", 1.0].append(parameter)
    listed = [id(parameter) for members in groups.values() for parameter in members]
    assert sorted(listed) == sorted({id(p) for p in model.parameters()}), "optimizer groups must partition the parameters"
    return [
        {
            "name": name,
            "params": members,
            "lr": lr * lr_scale,
            "weight_decay": weight_decay if name == "decay" else 0.0,
            "lr_scale": lr_scale,
        }
        for (name, lr_scale), members in groups.items()
        if members
    ]
