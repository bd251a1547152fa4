"""What the activations of a model see and do: inputs, gains and coefficients by layer, and where numbers stop being finite."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from activations.activation import Activation


def observe(model: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """Run model(inputs) once, uncompiled, and return a flat dict of floats, keys "<module name>.<what>", over all its inputs x:

    input_mean, input_std, input_absmax; second_moment E F^2 and slope_moment E F'^2 as measured; outside, the fraction of |x|
    beyond the range that the shape was made for; and each coefficient, "<parameter>.<index>", where channels have their own
    their mean and ".std". Cost: one forward, and one more forward and backward of each activation.
    """
    row: dict[str, Any] = {}

    def note(name: str, module: Activation, x: Tensor, y: Tensor) -> None:
        x, y = x.detach().float(), y.detach().float()
        row[f"{name}.input_mean"], row[f"{name}.input_std"] = float(x.mean()), float(x.std(correction=0))
        row[f"{name}.input_absmax"] = float(x.abs().max())
        row[f"{name}.second_moment"] = float(y.square().mean())
        row[f"{name}.slope_moment"] = float(_slopes(module, x).square().mean())
        row[f"{name}.outside"] = float((x.abs() > module.fitted_range).float().mean())
        row.update({f"{name}.{key}": value for key, value in _coefficients(module).items()})

    with _watching(model, Activation, note):
        model(inputs)
    return row


def input_stds(model: nn.Module, inputs: Tensor, kind: type | tuple[type, ...] = Activation) -> dict[str, float]:
    """Module name -> root mean square of what each module of class `kind` is fed in model(inputs); `swap` takes this.

    About zero, not about the mean: the fits' weight N(0, s^2) has to cover inputs whose mean training has moved. On a GELU GPT
    (3 layers, 128 wide, inputs of mean -0.5 and standard deviation 0.8) Hermite 8 so fitted costs 0.0006 nats, else 0.056.
    """
    found: dict[str, float] = {}

    def note(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        found[name] = float(x.float().square().mean().sqrt())

    with torch.no_grad(), _watching(model, kind, note):
        model(inputs)
    return found


def locate_nonfinite(
    model: nn.Module, inputs: Tensor | None = None, whole: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> str:
    """Which weights or gradients are not finite, coefficients of activations first, as one short text; empty if all are.

    With `inputs`, and all weights finite, model(inputs) is run and the first activation with a non-finite output is named, with
    its largest input and coefficient. `whole` makes a full tensor of what a process holds a part of.
    """
    ours = {id(p) for module in model.modules() if isinstance(module, Activation) for p in module.parameters()}
    named = sorted(model.named_parameters(), key=lambda item: id(item[1]) not in ours)
    weights = _all_where(((name, whole(p.detach())) for name, p in named), "weight")
    if weights:
        return _first(weights)
    overflow = _first_overflow(model, inputs) if inputs is not None else ""
    gradients = _all_where(((name, whole(p.grad)) for name, p in named if p.grad is not None), "gradient")
    return overflow or _first(gradients)


@contextmanager
def _watching(
    model: nn.Module, kind: type | tuple[type, ...], note: Callable[[str, Any, Tensor, Tensor], None]
) -> Iterator[None]:
    """Call note(name, module, input, output) after each forward of a module of class `kind`."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: note(name, module, inputs[0], output)

    watched = [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]
    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name, _ in watched]
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code knows no hooks
            yield
    finally:
        for handle in handles:
            handle.remove()


def _slopes(module: Activation, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(module.forward(x).sum(), x)  # not module(x): its hooks are ours
    return slopes


def _coefficients(module: Activation) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in module.values().items():
        for index, column in enumerate(value.unbind(-1)):
            found[f"{name}.{index}"] = float(column.mean())
            if column.dim():
                found[f"{name}.{index}.std"] = float(column.std(correction=0))
    return found


def _first_overflow(model: nn.Module, inputs: Tensor) -> str:
    found: list[str] = []

    def note(name: str, module: Activation, x: Tensor, y: Tensor) -> None:
        if not found and not y.isfinite().all():
            sizes = {key: abs(value) for key, value in _coefficients(module).items() if not key.endswith(".std")}
            largest = max(sizes, key=sizes.__getitem__, default="none")
            origin = f"inputs up to {float(x.abs().max()):.4g}" if x.isfinite().all() else "non-finite inputs"
            found.append(f"{name}: non-finite output in {y.dtype} for {origin}, largest coefficient {largest}")

    with torch.no_grad(), _watching(model, Activation, note):
        model(inputs)
    return found[0] if found else ""


def _all_where(tensors: Iterable[tuple[str, Tensor]], what: str) -> list[str]:
    return [_where(name, tensor, what) for name, tensor in tensors if not tensor.isfinite().all()]


def _where(name: str, tensor: Tensor, what: str) -> str:
    bad = (~tensor.isfinite()).nonzero()
    index = ",".join(str(i) for i in bad[0].tolist())
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"{what} of {name}[{index}]{more}"


def _first(places: list[str]) -> str:
    return "; ".join(places[:3]) + (f"; and {len(places) - 3} more tensors" if len(places) > 3 else "")
