"""Compiled against float64 and against eager code: values and gradients of every family at every degree, on this device.

    python -m bench.gradients [--device D] [--families NAME ...] [--size N]

Modules are compiled side by side in one graph, so that the compiler's fixed costs are paid once a batch. The error of a tensor
is its largest deviation over the largest entry of the exact one.
"""

import argparse
import itertools
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

CHANNELS, ROWS = 20, 7  # two vectors of eight and a tail
BOUND = 3e-5


def main(argv: list[str] | None = None) -> int:
    """Print a line a module; 1 where one is wrong."""
    parser = argparse.ArgumentParser(description="Compiled against exact gradients.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--families", nargs="+", choices=families(), default=families())
    parser.add_argument("--size", type=int, default=8, help="modules a graph")
    options = parser.parse_args(argv)
    wrong = 0
    for specs in batches(options.size, names=options.families):
        for row in compare(specs, pick_device(options.device), "inductor"):
            wrong += not row["good"]
            told = (
                f"{row['error']:.1e} in {row['worst']}, {row['against_eager']:.1e} from eager{'' if row['good'] else '  WRONG'}"
            )
            print(f"{row['activation']:48} {told}", flush=True)
    return int(wrong > 0)


def families() -> list[str]:
    """The learnable families."""
    return [name for name in registry.names() if issubclass(registry.family(name), Learnable)]


def specs_of(name: str) -> list[str]:
    """A family at every degree, the least first, for the whole layer and by channel.

    Of two degrees each is varied with the other at its default.
    """
    kind = registry.family(name)
    allowed = {key: kind.options[key].allowed for key in kind.degrees}
    default: dict[str, Any] = {key: kind.options[key].default for key in kind.degrees}
    degrees: list[dict[str, Any]] = [{key: values[0] for key, values in allowed.items()}]
    degrees += [default | {key: value} for key, values in allowed.items() for value in values]
    by_layer: dict[str, Any] = {"per": "layer"} | ({"groups": 1} if "groups" in kind.options else {})
    chosen = [degree | rows for degree in degrees for rows in (by_layer, {"per": "channel"})]
    return list(dict.fromkeys(f"{name}:" + ",".join(f"{key}={value}" for key, value in one.items()) for one in chosen))


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


def compare(specs: Sequence[str], device: torch.device, backend: str) -> Iterator[Row]:
    """A row for each module: its largest error, where it is, and whether that is within BOUND; the same against eager code.

    Both round, so that they may lie twice as far apart.
    """
    torch._dynamo.reset()
    model = SideBySide(specs).to(device)
    generator = torch.Generator().manual_seed(1)
    xs, dys = ([torch.randn(ROWS, CHANNELS, generator=generator).to(device) for _ in specs] for _ in range(2))
    leaves = [x.requires_grad_() for x in xs]
    ys = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)(leaves)
    torch.autograd.backward(ys, dys)
    for spec, module, x, y, dy in zip(specs, model.all, leaves, ys, dys, strict=True):
        assert isinstance(module, Activation)
        found = {"y": y.detach(), "dx": x.grad} | {name: parameter.grad for name, parameter in module.named_parameters()}
        errors = deviations(spec, found, exact(module, x, dy))
        from_eager = max(deviations(spec, found, eager(module, x, dy)).values())
        worst = max(errors, key=errors.__getitem__)
        good = errors[worst] < BOUND and from_eager < 2 * BOUND
        yield {"activation": spec, "error": errors[worst], "worst": worst, "against_eager": from_eager, "good": good}


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
