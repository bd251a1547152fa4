"""Compiled against float64 and against eager code: values and gradients of every family at every degree, on this device.

    python -m bench.gradients [--device D] [--families NAME ...] [--size N] [--dtype T]

Modules are compiled side by side in one graph, so that the compiler's fixed costs are paid once a batch. Their inputs and the
gradients of their outputs are views behind offsets, transposed, with steps, and contiguous. The error of a tensor is its
largest deviation over the largest entry of the exact one. A graph that saves more than one tensor of its inputs' size a module
is wrong too.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import activations
from activations import registry
from activations.activation import Activation, Learnable
from bench.harness import Row
from runtime.hardware import pick_device

CHANNELS, ROWS = 20, 37  # two vectors of eight and a tail; no table of coefficients has as many entries as the inputs
BOUND = {torch.float32: 3e-5, torch.bfloat16: 1e-2}


def main(argv: list[str] | None = None) -> int:
    """Print a line a module; 1 where one is wrong."""
    parser = argparse.ArgumentParser(description="Compiled against exact gradients.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--families", nargs="+", choices=families(), default=families())
    parser.add_argument("--size", type=int, default=8, help="modules a graph")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args(argv)
    wrong = 0
    for specs in batches(options.size, names=options.families):
        for row in compare(specs, pick_device(options.device), "inductor", getattr(torch, options.dtype)):
            wrong += not row["good"]
            finding = (
                f"{row['error']:.1e} in {row['worst']}, {row['against_eager']:.1e} from eager{'' if row['good'] else '  WRONG'}"
            )
            print(f"{row['activation']:48} {finding}", flush=True)
    return int(wrong > 0)


def families() -> list[str]:
    """The learnable families."""
    return [name for name in registry.names() if issubclass(registry.family(name), Learnable)]


def both(name: str, degrees: Mapping[str, object]) -> list[str]:
    """A family at these degrees, for the whole layer and by channel."""
    by_layer = {"per": "layer"} | ({"groups": 1} if "groups" in registry.family(name).options else {})
    chosen: list[Mapping[str, object]] = [{**degrees, **by_layer}, {**degrees, "per": "channel"}]
    return [f"{name}:" + ",".join(f"{key}={value}" for key, value in one.items()) for one in chosen]


def specs_of(name: str) -> list[str]:
    """A family at every degree that the registry lists, the least first, for the whole layer and by channel.

    Of two degrees (rational) each is varied with the other at its default: numerator and denominator are loops of their own.
    """
    kind = registry.family(name)
    allowed = {key: kind.options[key].allowed for key in kind.degrees}
    default: dict[str, Any] = {key: kind.options[key].default for key in kind.degrees}
    degrees: list[dict[str, Any]] = [{key: values[0] for key, values in allowed.items()}]
    degrees += [default | {key: value} for key, values in allowed.items() for value in values]
    return list(dict.fromkeys(spec for chosen in degrees for spec in both(name, chosen)))


def batches(size: int, most: int = 0, names: Sequence[str] = ()) -> Iterator[list[str]]:
    """Specs in batches: the first degree of every family, then the second, and so on; `most` batches, 0: all."""
    turns = itertools.zip_longest(*(specs_of(name) for name in names or families()))
    left = iter([spec for turn in turns for spec in turn if spec is not None])
    for number in itertools.count(1):
        batch = list(itertools.islice(left, size))
        if not batch:
            return
        yield batch
        if number == most:
            return


class SideBySide(nn.Module):
    """Activations of disturbed coefficients, each with an input of its own."""

    def __init__(self, specs: Sequence[str]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.all = nn.ModuleList(activations.build(spec, CHANNELS, 0.75) for spec in specs)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        """F of each."""
        return [module(x) for module, x in zip(self.all, xs, strict=True)]


def laid_out(index: int, seed: int) -> Tensor:
    """(ROWS, CHANNELS) of N(0, 1): behind an offset, transposed, every second column behind an offset, or contiguous."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(ROWS + 1, 2 * CHANNELS + 1, generator=draw)
    views = (base[1:].flatten()[3 : 3 + ROWS * CHANNELS].view(ROWS, CHANNELS), base[1:, :CHANNELS].T.contiguous().T)
    return (*views, base[1:, 1::2], base[1:, :CHANNELS].contiguous())[index % 4]


def compare(
    specs: Sequence[str],
    device: torch.device,
    backend: str = "inductor",
    dtype: torch.dtype = torch.float32,
    options: dict[str, Any] | None = None,
) -> Iterator[Row]:
    """A row for each module, compiled together: its largest error, where it is, and whether that is within BOUND.

    The same against eager code. Both round, so that they may lie twice as far apart.
    """
    torch._dynamo.reset()
    model = SideBySide(specs).to(device)
    xs = [laid_out(i, i).to(device, dtype).requires_grad_() for i in range(len(specs))]
    dys = [laid_out(i // 4, 1000 + i).to(device, dtype) for i in range(len(specs))]
    kept = 0

    def count(saved: Tensor) -> Tensor:
        nonlocal kept
        kept += saved.numel() == ROWS * CHANNELS
        return saved

    with torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        ys = torch.compile(model, fullgraph=True, dynamic=False, backend=backend, options=options)(xs)
    torch.autograd.backward(ys, dys)
    for spec, module, x, y, dy in zip(specs, model.all, xs, ys, dys, strict=True):
        assert isinstance(module, Activation)
        found = {"y": y.detach(), "dx": x.grad} | {name: parameter.grad for name, parameter in module.named_parameters()}
        errors = deviations(spec, found, exact(module, x, dy))
        from_eager = max(deviations(spec, found, eager(module, x, dy)).values())
        worst = max(errors, key=errors.__getitem__)
        good = errors[worst] < BOUND[dtype] and from_eager < 2 * BOUND[dtype]
        yield {"activation": spec, "error": errors[worst], "worst": worst, "against_eager": from_eager, "good": good}
    if kept > len(specs):
        finding = f"{kept} tensors of their inputs' size are saved"
        yield {
            "activation": f"{len(specs)} modules",
            "error": math.nan,
            "worst": finding,
            "against_eager": math.nan,
            "good": False,
        }


def deviations(spec: str, found: Mapping[str, Tensor | None], wanted: Sequence[Tensor]) -> dict[str, float]:
    """The largest deviation of each tensor over the largest entry of the wanted one."""
    errors = {}
    for (what, own), other in zip(found.items(), wanted, strict=True):
        assert own is not None, f"{spec} has no gradient for {what}"
        errors[what] = float((own.double().cpu() - other.double().cpu()).abs().max() / other.abs().max())
    return errors


def eager(module: Activation, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Values, then the gradients of x and of the parameters, as the module computes them without a compiler."""
    x = x.detach().requires_grad_()
    y: Tensor = module(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], dy)]


def exact(module: Activation, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Values, then the gradients of x and of the parameters, in float64 by the family's plain formula."""
    x = x.detach().double().requires_grad_()
    values = [value.to(x.device).requires_grad_() for value in module.values().values()]
    y = module.plain(x, module.unit.double(), *values)
    return [y.detach(), *torch.autograd.grad(y, [x, *values], dy.double())]


if __name__ == "__main__":
    sys.exit(main())
