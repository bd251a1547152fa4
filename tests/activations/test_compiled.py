"""Every family under Inductor itself: values, gradients of inputs and of coefficients against float64.

Several modules are one graph, so that the compiler's fixed costs are shared. A gradient that a compiler loses shows here
and nowhere else: `aot_eager` and eager code were right where Inductor returned zeros (LOG.md, 2026-11-27).
"""

import pytest
import torch
from torch import Tensor

import activations
from activations import registry
from activations.activation import Activation, Learnable
from activations.kernels import paths
from bench.gradients import CHANNELS, SideBySide

ROWS = 37  # no table of coefficients has as many entries as the inputs
GRAPH = 4  # modules a graph: fewer pay the compiler's start more often, more pay its quadratic search for what to fuse

# What is used twice is computed once. By default Inductor writes it out again in every loop that reads it: Fourier 8 by channel
# takes 36 s of CPU time to compile then, 4 so. The lowerings and the code generator are the same, in more and shorter loops.
SHORT_LOOPS = {"realize_opcount_threshold": 4}

LEARNABLE = [name for name in registry.names() if issubclass(registry.family(name), Learnable)]


def specs(name: str) -> list[str]:
    """`name` at every degree, the least first, for the whole layer and by channel.

    Of two degrees (rational) each is varied with the other at its default: numerator and denominator are loops of their own.
    """
    kind = registry.family(name)
    allowed = {key: kind.options[key].allowed for key in kind.degrees}
    default = {key: kind.options[key].default for key in kind.degrees}
    degrees: list[dict[str, object]] = [{key: values[0] for key, values in allowed.items()}]
    degrees += [default | {key: value} for key, values in allowed.items() for value in values]
    return list(dict.fromkeys(spec for chosen in degrees for spec in both(name, chosen)))


def both(name: str, degrees: dict[str, object]) -> list[str]:
    """`name` of these degrees for the whole layer and by channel."""
    for_all = {"per": "layer"} | ({"groups": 1} if "groups" in registry.family(name).options else {})
    chosen = [degrees | for_all, degrees | {"per": "channel"}]
    return [f"{name}:" + ",".join(f"{key}={value}" for key, value in options.items()) for options in chosen]


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


def compare(
    specs: list[str], device: str, dtype: torch.dtype = torch.float32, options: dict[str, object] | None = None
) -> list[str]:
    """Which of the modules, compiled together, give something else than `exact`, and by how much of its largest entry."""
    torch._dynamo.reset()
    model = SideBySide(specs).to(device)
    xs = [laid_out(i, i).to(device, dtype).requires_grad_() for i in range(len(specs))]
    dys = [laid_out(i // 4, 1000 + i).to(device, dtype) for i in range(len(specs))]
    options = (options or {}) | {"aot_inductor.debug_compile": True}  # the C++ compiler need not optimise
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        ys = torch.compile(model, fullgraph=True, dynamic=False, options=options)(xs)
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


def in_graphs(specs: list[str], device: str, dtype: torch.dtype = torch.float32) -> list[str]:
    """What `compare` finds in graphs of a few modules and short loops."""
    parts = [specs[first : first + GRAPH] for first in range(0, len(specs), GRAPH)]
    return [wrong for part in parts for wrong in compare(part, device, dtype, SHORT_LOOPS)]


def ordinary(name: str) -> list[str]:
    """By layer and by channel, at a degree whose sums are made row by row: what differs from the least degree but in length.

    Coefficients of a Hermite series in powers of x are for degrees below; from there on they are those of a recurrence.
    """
    degree = {"hermite": 8, "tropical": 7, "tpgu": 8}.get(name)
    return both(name, {"degree": degree} if degree else {})


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("device", DEVICES)
def test_least_degree_of_every_family(device: str) -> None:
    """In one graph: where single columns and empty slices arise, as users compile it."""
    assert (
        compare([*(specs(name)[0] for name in LEARNABLE), "hermite:degree=1,per=channel", "hermite:clamp=true"], device) == []
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LEARNABLE)
def test_ordinary_degree_of_every_family(name: str, device: str) -> None:
    assert in_graphs(ordinary(name), device) == []


def test_ordinary_degrees_are_of_the_row_by_row_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or `ordinary` would no longer be the other of the two paths."""
    counts: list[int] = []
    gather = paths._gather
    monkeypatch.setattr(paths, "_gather", lambda sums, count: (counts.append(count), gather(sums, count))[1])
    for name in LEARNABLE:
        x = torch.randn(3, CHANNELS, requires_grad=True)
        activations.build(ordinary(name)[0], CHANNELS)(x).sum().backward()
    assert counts == [count for count in counts if count > paths.FUSED_SUMS or count == 3]  # xIELU has three at most


# 240 modules at three to eight seconds of one core: too dear for make test and for CI. LOG.md says what a whole run found.
@pytest.mark.slow
@pytest.mark.timeout(6000)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", LEARNABLE)
def test_every_degree(name: str, device: str) -> None:
    assert in_graphs(specs(name), device) == []


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision(device: str) -> None:
    assert in_graphs([spec for name in LEARNABLE for spec in both(name, {})], device, torch.bfloat16) == []
