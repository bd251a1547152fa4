"""Every family under Inductor itself: values, gradients of inputs and of coefficients against float64.

All modules of a family are one graph, so that the compiler's costs are paid once. A gradient that a compiler loses shows here
and nowhere else: `aot_eager` and eager code were right where Inductor returned zeros (LOG.md, 2026-11-27).
"""

import pytest
import torch
from torch import Tensor, nn

import activations
from activations import registry
from activations.activation import Activation, Learnable

CHANNELS = 20  # two vectors of eight and a tail
ROWS = 7

LEARNABLE = [name for name in registry.names() if issubclass(registry.family(name), Learnable)]


def specs(name: str) -> list[str]:
    """`name` at every degree, the least first, for the whole layer and by channel.

    Of two degrees (rational) each is varied with the other at its default: numerator and denominator are loops of their own.
    """
    kind = registry.family(name)
    by_row = [{"per": "layer"} | ({"groups": 1} if "groups" in kind.options else {}), {"per": "channel"}]
    allowed = {key: kind.options[key].allowed for key in kind.degrees}
    default = {key: kind.options[key].default for key in kind.degrees}
    degrees: list[dict[str, object]] = [{key: values[0] for key, values in allowed.items()}]
    degrees += [default | {key: value} for key, values in allowed.items() for value in values]
    return list(dict.fromkeys(_spec(name, chosen | rows) for chosen in degrees for rows in by_row))


def _spec(name: str, options: dict[str, object]) -> str:
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in options.items())


class SideBySide(nn.Module):
    """Activations of disturbed coefficients, each with an input of its own."""

    def __init__(self, specs: list[str]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.all = nn.ModuleList(activations.build(spec, CHANNELS, 0.75) for spec in specs)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [module(x) for module, x in zip(self.all, xs, strict=True)]


def laid_out(index: int, seed: int) -> Tensor:
    """(ROWS, CHANNELS) of N(0, 1): behind an offset, transposed, every second column behind an offset, or contiguous."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(ROWS + 1, 2 * CHANNELS + 1, generator=draw)
    views = (base[1:].flatten()[3 : 3 + ROWS * CHANNELS].view(ROWS, CHANNELS), base[1:, :CHANNELS].T.contiguous().T)
    return (*views, base[1:, 1::2], base[1:, :CHANNELS].contiguous())[index % 4]


def exact(module: Activation, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Values, then the gradients of x and of the parameters, in float64 by the family's formula."""
    x, s = x.detach().double().requires_grad_(), float(module.unit)
    values = {name: value.to(x.device).requires_grad_() for name, value in module.values().items()}
    by_channel = {name: module._per_channel(value) for name, value in values.items()}
    y = s * module.evaluate(by_channel, x / s)
    trained = [values[name] for name, _ in module.named_parameters()]
    return [y.detach(), *torch.autograd.grad(y, [x, *trained], dy.double())]


def full_size(t: Tensor) -> bool:
    """Whether t has as many elements as the inputs, which is how a saved intermediate would look."""
    return t.numel() == ROWS * CHANNELS


def compare(specs: list[str], device: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """Which of the modules, compiled together, give something else than `exact`, and by how much of its largest entry."""
    torch._dynamo.reset()
    model = SideBySide(specs).to(device)
    xs = [laid_out(i, i).to(device, dtype).requires_grad_() for i in range(len(specs))]
    dys = [laid_out(i // 4, 1000 + i).to(device, dtype) for i in range(len(specs))]
    # The C++ compiler need not optimise: it would take most of the time.
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        ys = torch.compile(model, fullgraph=True, dynamic=False, options={"aot_inductor.debug_compile": True})(xs)
    torch.autograd.backward(ys, dys)
    wrong = [f"{len(specs)} modules save {sum(map(full_size, saved))} tensors of their inputs' size"]
    wrong = [] if sum(map(full_size, saved)) <= len(specs) else wrong
    bound = 1e-2 if dtype == torch.bfloat16 else 3e-5
    for spec, module, x, y, dy in zip(specs, model.all, xs, ys, dys, strict=True):
        assert isinstance(module, Activation)
        found = [y.detach(), x.grad, *(p.grad for p in module.parameters())]
        for what, own, other in zip(("y", "dx", *dict(module.named_parameters())), found, exact(module, x, dy), strict=True):
            assert own is not None
            error = float((own.double() - other).abs().max() / other.abs().max())
            if not error < bound:
                wrong.append(f"{spec} on {device}: {what} {error:.1e}")
    return wrong


NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_CUDA])]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("device", DEVICES)
def test_least_degree_of_every_family(device: str) -> None:
    """In one graph: where single columns and empty slices arise. Every degree is in the slow tests."""
    assert compare([*(specs(name)[0] for name in LEARNABLE), "hermite:degree=1,per=channel"], device) == []


# A module costs three to fifteen seconds of one core, and there are 240: too dear for make test and for CI.
@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LEARNABLE)
def test_every_degree(name: str, device: str) -> None:
    wanted = specs(name)
    for first in range(0, len(wanted), 32):
        assert compare(wanted[first : first + 32], device) == []


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision(device: str) -> None:
    assert compare([f"{name}:per={per}" for name in LEARNABLE for per in ("layer", "channel")], device, torch.bfloat16) == []
