"""Beyond one backward pass: second derivatives, torch.func, forward mode, export, loading."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, grad
from torch.func import functional_call, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import activations
from activations import registry
from activations.activation import Learnable

LEARNABLE = [name for name in registry.names() if issubclass(registry.family(name), Learnable)]
SPECS = [f"{name}:per={per}" for name in LEARNABLE for per in ("layer", "channel")] + ["hermite:clamp=true"]
CHANNELS = 8


def network(spec: str, inputs: int = 2) -> nn.Sequential:
    """Two hidden layers, one output, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        acts = [activations.build(spec, CHANNELS, 0.7) for _ in range(2)]
        layers = [nn.Linear(inputs, CHANNELS), acts[0], nn.Linear(CHANNELS, CHANNELS), acts[1], nn.Linear(CHANNELS, 1)]
        return nn.Sequential(*layers).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def assert_near(found: Tensor, wanted: Tensor, tolerance: float = 1e-6) -> None:
    assert float((found - wanted).norm()) <= tolerance * float(wanted.norm()) + 1e-12


@pytest.mark.parametrize("spec", SPECS)
def test_hessian_vector_products(spec: str) -> None:
    """By torch.autograd.grad twice, as Sophia and Hutchinson's estimator have them, against differences of gradients."""
    model, x = network(spec), draw(6, 2)
    parameters = list(model.parameters())
    direction = [draw(*p.shape, seed=index) for index, p in enumerate(parameters)]

    def gradient() -> tuple[Tensor, ...]:
        return grad((model(x) - 1).square().mean(), parameters)

    first = grad((model(x) - 1).square().mean(), parameters, create_graph=True)
    assert_near(flat(first).detach(), flat(gradient()), 1e-12)
    found = grad(sum((g * d).sum() for g, d in zip(first, direction, strict=True)), parameters)
    step, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(sign * step * d)
        ends.append(flat(gradient()))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(sign * step * d)
    assert_near(flat(found), (ends[0] - ends[1]) / (2 * step), 1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_penalty_with_a_frozen_head(spec: str) -> None:
    model = network(spec).requires_grad_(False)
    weight = model[0].weight.requires_grad_()

    def penalty() -> Tensor:
        x = draw(4, 2).requires_grad_()
        return grad(model(x).sum(), x, create_graph=True)[0].square().sum()

    (found,) = grad(penalty(), weight)
    step, direction = 1e-6, draw(*weight.shape, seed=3)
    ends = []
    for sign in (1, -2):
        weight.data.add_(sign * step * direction)
        ends.append(penalty().detach())
    assert_near((found * direction).sum(), (ends[0] - ends[1]) / (2 * step), 1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_second_derivatives_of_a_network(spec: str) -> None:
    """u'' as physics-informed networks take it."""
    model = network(spec, inputs=1)
    x = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)[:, None].requires_grad_()
    (first,) = grad(model(x).sum(), x, create_graph=True)
    (second,) = grad(first.sum(), x)  # zeros where F is piecewise linear, as of nn.ReLU
    step, ends = 1e-6, []
    for sign in (1, -1):
        moved = (x + sign * step).detach().requires_grad_()
        ends.append(grad(model(moved).sum(), moved)[0])
    wanted = (ends[0] - ends[1]) / (2 * step)
    assert float((second - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max()) + 1e-7


@pytest.mark.parametrize("spec", SPECS)
def test_third_derivatives(spec: str) -> None:
    """Zeros where F is piecewise linear, and no error: as of nn.ReLU."""
    module, x = activations.build(spec, CHANNELS, 0.7).double(), draw(3, CHANNELS).requires_grad_()

    def nth(y: Tensor, times: int) -> Tensor:
        for _ in range(times):
            (y,) = grad(y.sum(), x, create_graph=True)
        return y

    third = nth(module(x), 3)
    step = 1e-5
    ends = [grad(nth(module(x + sign * step), 1).sum(), x)[0] for sign in (1, -1)]
    assert_near(third.detach(), (ends[0] - ends[1]) / (2 * step), 1e-4)


@pytest.mark.parametrize("spec", SPECS)
def test_what_it_returns_may_be_changed_in_place(spec: str) -> None:
    """As dropout does; and its inputs may not before the backward pass, where they are kept."""
    module, x = activations.build(spec, CHANNELS, 0.7), draw(3, CHANNELS).float().requires_grad_()
    module(x).mul_(2).sum().backward()
    (wanted,) = grad(2 * module(x).sum(), x)
    torch.testing.assert_close(x.grad, wanted)


@pytest.mark.parametrize("spec", SPECS)
def test_functional_transforms(spec: str) -> None:
    model, x = network(spec), draw(5, 2)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, parameters, (sample[None],)).square().sum()

    per_sample = vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index, sample in enumerate(x):
        wanted = grad(loss(parameters, sample), list(parameters.values()))
        for own, other in zip(per_sample.values(), wanted, strict=True):
            torch.testing.assert_close(own[index], other)
    batched = vmap(lambda sample: model(sample[None])[0])(x)
    torch.testing.assert_close(batched, model(x))

    def single(sample: Tensor) -> Tensor:
        return model(sample[None])[0]

    direction = draw(2, seed=5)
    jacobian = jacrev(single)(x[0])
    torch.testing.assert_close(jacfwd(single)(x[0]), jacobian)
    torch.testing.assert_close(jvp(single, (x[0],), (direction,))[1], jacobian @ direction)
    leaf = x[0].clone().requires_grad_()
    torch.testing.assert_close(jacobian[0], grad(model(leaf[None]).sum(), leaf)[0])
    assert hessian(single)(x[0]).shape == (1, 2, 2)
    many = torch.autograd.functional.jacobian(lambda u: model(u).sum(0), x, vectorize=True)
    torch.testing.assert_close(many[0], vmap(jacrev(single))(x)[:, 0])


@pytest.mark.parametrize("spec", SPECS)
def test_forward_mode(spec: str) -> None:
    module, x, tangent = activations.build(spec, CHANNELS, 0.7).double(), draw(4, CHANNELS), draw(4, CHANNELS, seed=1)
    with forward_ad.dual_level():
        y, found = forward_ad.unpack_dual(module(forward_ad.make_dual(x, tangent)))
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(y, module(x))
    torch.testing.assert_close(found, grad(module(leaf).sum(), leaf)[0] * tangent)


@pytest.mark.parametrize("name", LEARNABLE)
def test_ensembles(name: str) -> None:
    """Stacked parameters and buffers, each member made for inputs of its own law."""
    members = [activations.build(f"{name}:per=channel", CHANNELS, std) for std in (0.5, 0.8)]
    parameters, buffers = stack_module_state(members)
    x = draw(3, CHANNELS).float()
    found = vmap(lambda p, b: functional_call(members[0], (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([member(x) for member in members]), rtol=1e-5, atol=1e-5)


def test_all_export_in_the_default_mode() -> None:
    """With a batch size left open; per layer and by channel in one program."""
    modules = nn.ModuleList(activations.build(spec, CHANNELS, 0.7) for spec in SPECS)

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modules_ = modules

        def forward(self, x: Tensor) -> list[Tensor]:
            return [module(x) for module in self.modules_]

    x = draw(3, CHANNELS).float()
    program = torch.export.export(All(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    other = draw(5, CHANNELS, seed=2).float()
    for own, module in zip(program.module()(other), modules, strict=True):
        torch.testing.assert_close(own, module(other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", ["gelu", *SPECS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_assigns_onto_the_meta_device(spec: str, dtype: torch.dtype) -> None:
    module = activations.build(spec, CHANNELS, 0.7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    file = {name: tensor.to(dtype) for name, tensor in module.state_dict().items()}
    with torch.device("meta"):
        loaded = nn.Sequential(activations.build(spec, CHANNELS))
    loaded.load_state_dict({f"0.{name}": tensor for name, tensor in file.items()}, assign=True)
    assert all(not t.is_meta and t.dtype == torch.float32 for t in (*loaded.parameters(), *loaded.buffers()))
    assert all(activations.is_coefficient(name, parameter) for name, parameter in loaded.named_parameters())
    module.load_state_dict(file)
    x = draw(3, CHANNELS).float()
    assert torch.equal(loaded(x), module(x))
    assert activations.gains(loaded[0], 1.0) == activations.gains(module, 1.0)


@pytest.mark.parametrize("spec", ["gelu", *SPECS, "hermite:init=paper", "tropical:init=fit-gelu", "fourier:learnable=false"])
def test_reset_parameters_is_what_building_made(spec: str) -> None:
    """Also after `to_empty`, whose memory holds anything."""
    built = activations.build(spec, CHANNELS, 0.6)
    with torch.device("meta"):
        module = activations.build(spec, CHANNELS, 0.6)
    module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(math.nan)
    module.reset_parameters()
    x = draw(3, CHANNELS).float()
    assert torch.equal(module(x), built(x))
    assert all(torch.equal(tensor, built.state_dict()[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("spec", ["gelu", *LEARNABLE])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_only_real_floating_point_is_taken(spec: str, dtype: torch.dtype) -> None:
    with pytest.raises(NotImplementedError, match="not implemented for"):
        activations.build(spec, CHANNELS)(torch.ones(2, CHANNELS).to(dtype))


# F(-inf), F(inf) at init=unit, degrees as by default; None: a finite number. F(NaN) is NaN, and 0 and -0 are one to all.
INFINITE = {
    "hermite": (-math.inf, math.inf),
    "fourier": (None, None),
    "tropical": (None, math.inf),
    "tropical_rational": (None, None),
    "tpgu": (math.inf, math.inf),
    "rational": (None, None),
    "xielu": (math.inf, math.inf),
    "spline": (None, None),
    "swish": (None, None),
    "prelu": (None, None),
}


@pytest.mark.parametrize("name", LEARNABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_special_values(name: str, dtype: torch.dtype) -> None:
    module = activations.build(name, CHANNELS, 0.7)
    tiny = torch.finfo(dtype).tiny / 4
    special = torch.tensor([-math.inf, math.inf, math.nan, 0.0, -0.0, tiny, -tiny], dtype=dtype)
    x = special[:, None].expand(-1, CHANNELS).contiguous().requires_grad_()
    y = module(x)
    y.sum().backward()
    assert x.grad is not None
    for row, wanted in zip(y[:2, 0], INFINITE[name], strict=True):
        assert row.isfinite() if wanted is None else float(row) == wanted
    assert y[2].isnan().all()
    assert torch.equal(y[3], y[4])
    torch.testing.assert_close(y[5:], y[3].expand_as(y[5:]), rtol=1e-5, atol=1e-37)
    assert x.grad[3:].isfinite().all()


def test_a_deep_copy_and_a_pickle_keep_second_derivatives() -> None:
    module = copy.deepcopy(activations.build("hermite", 4).double())
    x = draw(2, 4).requires_grad_()
    (first,) = grad(module(x).sum(), x, create_graph=True)
    (second,) = grad(first.sum(), x)
    assert_near(second, grad(grad(module.reference(x).sum(), x, create_graph=True)[0].sum(), x)[0])


def test_gelu_is_the_measure() -> None:
    """What torch's own module does in the tests above is what ours are asked."""
    x = draw(3, CHANNELS)
    torch.testing.assert_close(vmap(torch.func.grad(lambda u: F.gelu(u).sum()))(x), jacrev(lambda u: F.gelu(u).sum())(x))


TRACED = [*SPECS, "hermite:degree=8"]  # a recurrence, and powers


@pytest.mark.parametrize("spec", TRACED)
def test_tracers_follow_it(spec: str) -> None:
    """make_fx and jit.trace record operators that hold for other inputs and coefficients; fake tensors have no numbers."""
    module, x = activations.build(spec, CHANNELS, 0.7), draw(3, CHANNELS).float()
    parameters = {name: p.detach() for name, p in (*module.named_parameters(), *module.named_buffers())}
    other = parameters | {name: 1.1 * parameters[name] for name, _ in module.named_parameters()}

    def f(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,))

    for mode in ("real", "fake"):
        traced = make_fx(f, tracing_mode=mode)(parameters, x)
        torch.testing.assert_close(traced(other, -x), f(other, -x), rtol=1e-5, atol=1e-5)
    recorded = torch.jit.trace(module, (x,), check_trace=False)
    longer = draw(5, CHANNELS, seed=1).float()
    torch.testing.assert_close(recorded(longer), module(longer), rtol=1e-5, atol=1e-5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.randn(3, CHANNELS, requires_grad=True)
        module(fake).sum().backward()
    assert fake.grad is not None
    assert fake.grad.shape == (3, CHANNELS)


@pytest.mark.parametrize("spec", SPECS)
def test_images_keep_their_memory_format(spec: str) -> None:
    module = activations.build(spec, CHANNELS, 0.7)
    module.channel_dim = 1
    x = draw(2, CHANNELS, 3, 5).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = module(x)
    y.square().sum().backward()
    leaf = x.detach().contiguous().requires_grad_()
    module(leaf).square().sum().backward()
    for own, other in ((y, module(leaf)), (x.grad, leaf.grad)):
        assert own is not None
        assert other is not None
        assert own.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("spec", ["gelu", "hermite", "tropical:per=channel"])
def test_derivatives_inside_compiled_code(spec: str) -> None:
    """torch.compile of a function that differentiates twice, backward and forward: Dynamo has to meet the plain formula."""
    torch._dynamo.reset()
    module, x = activations.build(spec, CHANNELS, 0.7).double(), draw(2, CHANNELS)

    def energy(x: Tensor) -> Tensor:
        return module(x).square().sum()

    def derivatives(x: Tensor) -> tuple[Tensor, ...]:
        slope = torch.func.grad(energy)
        return torch.func.grad(lambda x: slope(x).square().sum())(x), jvp(slope, (x,), (torch.ones_like(x),))[1]

    compiled = torch.compile(derivatives, backend="eager", fullgraph=True)
    for own, other in zip(compiled(x), derivatives(x), strict=True):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("spec", ["hermite:per=channel", "tropical"])
def test_compiled_code_takes_any_batch_size(spec: str) -> None:
    """As Dynamo has it after a second size, and with dynamic=True from the first on."""
    torch._dynamo.reset()
    module = activations.build(spec, CHANNELS, 0.7)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (3, 128, 256, 5):
        x = draw(size, CHANNELS).float().requires_grad_()
        tensors = [x, *module.parameters()]
        found = grad(compiled(x).square().sum(), tensors)
        torch.testing.assert_close(found, grad(module(x).square().sum(), tensors), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", ["gelu", "hermite"])
def test_a_compiled_model_refuses_second_derivatives_and_the_uncompiled_one_has_them(spec: str) -> None:
    """PyTorch's own error where the model is its user's: it comes from outside the compiled graph. `GPT` has one of its own."""
    model = network(spec)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = draw(3, 2).requires_grad_()
    (slope,) = grad(compiled(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        slope.square().sum().backward()
    (slope,) = grad(model(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad is not None
