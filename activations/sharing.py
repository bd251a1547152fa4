"""One set of coefficients for all layers: `per=model` modules of one spec hold the same parameters.

Each layer keeps a module of its own, with its own `input_std`, hooks and place in the model. Only the parameters are one, as a
tied embedding is: `model.parameters()` lists them once, so they are counted, decayed and stepped once, and their gradient is
the sum over layers.
"""

from torch import nn

from activations.activation import Learnable


def share(model: nn.Module) -> int:
    """Tie the `per=model` activations of `model`, in place, by spec; returns how many sets they are then.

    The first module of a spec gives its values. Deep copies and moves to another device keep the tie; `to_empty` does not, and
    another call puts it back. ValueError where shapes differ, as of other numbers of groups.
    """
    first: dict[str, Learnable] = {}
    for name, module in model.named_modules():
        if not isinstance(module, Learnable) or module.choices["per"] != "model":
            continue
        source = first.setdefault(module.spec, module)
        for key, parameter in source.named_parameters(recurse=False):
            if getattr(module, key).shape != parameter.shape:
                raise ValueError(f"per=model: {name} has {key} of another shape than the first; use per=layer")
            setattr(module, key, parameter)
    return len(first)


def repeated_names(model: nn.Module) -> set[str]:
    """The names in `model.state_dict()` under which a parameter appears again: a file holds each once, under its first name."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}
