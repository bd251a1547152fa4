"""The suite that every registered family passes without being named in it, and families of a few lines do too."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import activations
from activations import registry
from activations.activation import Activation, Learnable
from activations.moments import quadrature
from activations.target import gelu

CHANNELS = 16
TOYS = {f"toy_{kind.lower()}": f"tests.activations.toy.{kind}" for kind in ("Swish", "PReLU", "Softplus")}
NAMES = (*registry.names(), *TOYS)
REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "activation_reference.json").read_text())

# How the reference vectors call what our modules call otherwise; a family has at most one of each tuple.
PARAMETERS = {
    "a": ("coefficients", "amplitudes", "intercepts"),
    "w": ("frequencies",),
    "phi": ("phases",),
    "s": ("scale",),
    "b": ("expansion_point",),
    "slope_num": ("slopes",),
    "a_num": ("intercepts",),
    "slope_den": ("slopes_den",),
    "a_den": ("intercepts_den",),
    "p": ("numerator",),
    "q": ("denominator",),
}


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, place in TOYS.items():
        monkeypatch.setitem(registry.FAMILIES, name, place)


def family(name: str) -> type[Activation]:
    with pytest.MonkeyPatch.context() as patch:
        for toy, place in TOYS.items():
            patch.setitem(registry.FAMILIES, toy, place)
        return registry.family(name)


def degrees(name: str) -> list[str]:
    """One spec for each combination of allowed degrees."""
    kind = family(name)
    allowed = [kind.options[option].allowed for option in kind.degrees]
    return [spec(name, **dict(zip(kind.degrees, values, strict=True))) for values in itertools.product(*allowed)]


def extremes(name: str) -> list[str]:
    """The default and the lowest and highest degrees, by layer and by channel."""
    listed = degrees(name)
    kept = dict.fromkeys([name, listed[0], listed[-1]])
    if "per" not in family(name).options:
        return list(kept)
    return [f"{one}{',' if ':' in one else ':'}per={per}" for one in kept for per in ("layer", "channel")]


def spec(name: str, **options: object) -> str:
    return name + (":" if options else "") + ",".join(f"{key}={str(value).lower()}" for key, value in options.items())


LEARNABLE = [name for name in NAMES if issubclass(family(name), Learnable)]
CLAMPED = [f"hermite:degree={degree},clamp=true,per={per}" for degree in (1, 5) for per in ("layer", "channel")]
EXTREMES = [*(one for name in NAMES for one in extremes(name)), *CLAMPED]
DEFAULTS = [*NAMES[: NAMES.index(LEARNABLE[0])], *(f"{name}:per={per}" for name in LEARNABLE for per in ("layer", "channel"))]
DEFAULTS += CLAMPED[:2]


def inputs(*shape: int, seed: int = 0, std: float = 1.0) -> Tensor:
    return std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def magnitude(module: Activation, x: Tensor) -> Tensor:
    """sum_k |theta_k dF/dtheta_k| + |F| at x: the scale that rounding errors are measured in."""
    y = module.reference(x)
    total = y.detach().abs()
    values = module.values()
    if not values:
        return total + x.abs()
    s = float(module.unit)
    rows = {k: module._per_channel(v).expand(*x.shape, -1).clone().requires_grad_() for k, v in values.items()}
    out = s * module.evaluate(rows, x / s)
    gradients = torch.autograd.grad(out.sum(), list(rows.values()))
    return total + sum((row * gradient).abs().sum(-1) for row, gradient in zip(rows.values(), gradients, strict=True)).detach()


@pytest.mark.parametrize("name", NAMES)
def test_states_what_it_is(name: str) -> None:
    kind = family(name)
    assert set(kind.degrees) <= set(kind.options), f"{name} must state its degrees among its options"
    assert kind.evaluate is not Activation.evaluate, f"{name} must have a reference of its own"
    assert kind.__doc__ != Activation.__doc__


@pytest.mark.parametrize("one", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_shape_and_dtype_are_kept(one: str, dtype: torch.dtype) -> None:
    module = activations.build(one, CHANNELS)
    for shape in ((CHANNELS,), (3, CHANNELS), (2, 3, CHANNELS), (0, CHANNELS)):
        y = module(torch.ones(shape, dtype=dtype))
        assert (y.shape, y.dtype) == (shape, dtype)
    x = inputs(CHANNELS, 5).to(dtype).T  # not contiguous
    torch.testing.assert_close(module(x), module(x.contiguous()))


@pytest.mark.parametrize("one", EXTREMES)
def test_gradients_of_inputs_and_all_parameters(one: str) -> None:
    module = activations.build(one, CHANNELS, input_std=0.7).double()
    x = (0.9 * inputs(3, CHANNELS) + 0.01).requires_grad_()
    parameters = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}

    def evaluate(x: Tensor, *values: Tensor) -> Any:
        return torch.func.functional_call(module, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(evaluate, (x, *parameters.values()), fast_mode=True)
    assert torch.autograd.gradgradcheck(evaluate, (x, *parameters.values()), fast_mode=True)


@pytest.mark.parametrize("one", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_frozen_is_the_same_function(one: str, dtype: torch.dtype) -> None:
    module = activations.build(one, CHANNELS)
    frozen = module.frozen()
    for x in (inputs(3, CHANNELS).to(dtype), inputs(2, 0, CHANNELS).to(dtype), inputs(CHANNELS).to(dtype)):
        with torch.no_grad():
            assert torch.equal(frozen(x), module(x))
            assert torch.equal(frozen(x), module(x)), "a second time, from what was kept"


@pytest.mark.parametrize("one", EXTREMES)
def test_agrees_with_its_own_reference(one: str) -> None:
    module = activations.build(one, CHANNELS, input_std=0.8)
    x = torch.linspace(-8, 8, 64 * CHANNELS, dtype=torch.float32).reshape(64, CHANNELS)
    expected, scale = module.reference(x), magnitude(module, x.double())
    assert ((module(x) - expected).abs() <= 2e-6 * scale + 1e-12).all()
    assert ((module.double()(x.double()) - expected).abs() <= 1e-13 * scale + 1e-15).all()


@pytest.mark.parametrize("one", EXTREMES)
@pytest.mark.parametrize(("dtype", "half_ulp"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_is_rounded_once(one: str, dtype: torch.dtype, half_ulp: float) -> None:
    module = activations.build(one, CHANNELS).to(dtype)
    x = inputs(64, CHANNELS, std=1.5).clamp(-4, 4).to(dtype)
    expected, scale = module.reference(x), magnitude(module, x.double())
    bound = 1.01 * half_ulp * expected.abs().clamp(min=torch.finfo(dtype).tiny) + 2e-6 * scale
    assert ((module(x) - expected).abs() <= bound).all()


@pytest.mark.parametrize("one", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_never_nan_for_finite_inputs(one: str, dtype: torch.dtype) -> None:
    module = activations.build(one, CHANNELS, input_std=0.3)
    largest = torch.finfo(dtype).max
    x = torch.tensor([0, 1e-7, 1, 8, 100, 1e4, largest**0.5, largest / 2, largest], dtype=dtype)
    x = torch.cat([x, -x])[:, None].expand(-1, CHANNELS)
    assert not module(x).isnan().any()


@pytest.mark.parametrize("one", DEFAULTS)
def test_precision_of_parameters(one: str) -> None:
    module = activations.build(one, CHANNELS)
    for convert, expected in (
        (nn.Module.half, torch.float32),
        (nn.Module.bfloat16, torch.float32),
        (nn.Module.double, torch.float64),
    ):
        before = module.values()
        convert(module)
        assert all(t.dtype == expected for t in (*module.parameters(), *module.buffers()))
        assert all(torch.equal(before[key], value) for key, value in module.values().items())


@pytest.mark.parametrize("one", [*(one for name in LEARNABLE for one in degrees(name)), *CLAMPED])
def test_initial_gain_is_exact(one: str) -> None:
    std = 0.25
    module = activations.build(one, CHANNELS, input_std=std)
    assert isinstance(module, Learnable)
    second, slope = activations.gains(module)
    assert second == pytest.approx(std**2, rel=1e-6)
    if module.has_free_constant:
        assert slope == pytest.approx(1, rel=1e-6)
    else:
        assert 0.5 < slope < 10


@pytest.mark.parametrize("one", [one for name in LEARNABLE for one in degrees(name)])
def test_no_parameter_starts_dead(one: str) -> None:
    n = 256  # one channel a quantile, so that every channel's gradient is dF/dtheta at one input
    module = activations.build(f"{one}{',' if ':' in one else ':'}per=channel", n, input_std=0.5).double()
    quantiles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    module(0.5 * torch.special.ndtri(quantiles)[None]).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad.square().mean(dim=0) > 0).all(), f"{one}: {name} has an entry without gradient"


@pytest.mark.parametrize("one", EXTREMES)
def test_moments_agree_with_quadrature_and_samples(one: str) -> None:
    module = activations.build(one, CHANNELS, input_std=0.5)
    values = module.values()
    rows = next((value.shape[:-1] for value in values.values()), torch.Size())
    found = module.moments(values, 0.8)
    expected = quadrature(lambda z: module.evaluate(values, z), 0.8, module.kinks(values).expand(*rows, -1))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    x = inputs(1 << 13, 1, std=0.4).expand(-1, CHANNELS).requires_grad_()  # 0.4 = 0.8 * 0.5 where the unit is 0.5
    std = 0.8 * float(module.unit)
    y = module.reference(x * (std / 0.4))
    square = y.detach().square().mean(dim=1)
    error = square.std() / math.sqrt(len(square))
    assert abs(float(square.mean()) - activations.gains(module, std)[0]) < 5 * float(error) + 1e-9


@pytest.mark.parametrize("one", DEFAULTS)
def test_state_survives_saving(one: str, tmp_path: Path) -> None:
    module = activations.build(one, CHANNELS, input_std=0.6)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.01)
    x = inputs(8, CHANNELS).float()
    for loaded in (module.state_dict(), _through_safetensors(module, tmp_path / "weights.safetensors")):
        other = activations.build(one, CHANNELS)
        other.load_state_dict(loaded)
        assert torch.equal(other(x), module(x))


def _through_safetensors(module: nn.Module, path: Path) -> dict[str, Tensor]:
    save_file(module.state_dict(), path)
    return load_file(path)


@pytest.mark.parametrize("one", DEFAULTS)
def test_takes_no_weight_decay(one: str) -> None:
    model = nn.Sequential(nn.Linear(4, CHANNELS), activations.build(one, CHANNELS), nn.Linear(CHANNELS, 4))
    groups = activations.parameter_groups(model, lr=1e-3, weight_decay=0.1, activation_lr_scale=3.0)
    ours = {id(p) for p in model[1].parameters()}
    for group in groups:
        mine = [p for p in group["params"] if id(p) in ours]
        assert not mine or (group["name"] == "activation" and group["weight_decay"] == 0 and group["lr"] > 1e-3)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("one", EXTREMES)
def test_spec_comes_back(one: str) -> None:
    canonical = registry.check(one)
    module = activations.build(one, CHANNELS)
    assert module.spec == canonical == registry.check(canonical)
    assert type(activations.build(canonical, CHANNELS)) is type(module)


@pytest.mark.parametrize("name", NAMES)
def test_bad_options_name_the_nearest(name: str) -> None:
    with pytest.raises(ValueError, match=rf"did you mean '{name}'") as caught:
        registry.check(name[:-1] + name[-1] * 2)
    assert "\n" not in str(caught.value)
    for key, option in family(name).options.items():
        with pytest.raises(ValueError, match=rf"'{key}x' is not an option of {name}; did you mean '{key}'"):
            registry.check(f"{name}:{key}x=1")
        with pytest.raises(ValueError, match=rf"{key}='.*' is not allowed; .*allowed: "):
            registry.check(f"{name}:{key}={'-1' if isinstance(option.allowed, range) else 'nonsense'}")


@pytest.mark.parametrize("name", LEARNABLE)
@pytest.mark.parametrize("init", ["unit", "paper", "fit-gelu"])
def test_building_is_deterministic_and_draws_nothing(name: str, init: str) -> None:
    if init not in family(name).options["init"].allowed:
        pytest.skip(f"{name} refuses init={init}")
    state = torch.get_rng_state()
    modules = [activations.build(f"{name}:init={init}", CHANNELS, input_std=0.4) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (module.state_dict() for module in modules)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", LEARNABLE)
@pytest.mark.parametrize("init", ["unit", "fit-gelu"])
def test_builds_without_gradients_and_on_any_device(name: str, init: str) -> None:
    expected = activations.build(f"{name}:init={init}", CHANNELS)
    with torch.no_grad():
        values = activations.build(f"{name}:init={init}", CHANNELS).values()
    assert all(torch.equal(value, values[key]) for key, value in expected.values().items())
    with torch.device("meta"):
        module = activations.build(f"{name}:init={init}", CHANNELS)
    assert all(t.is_meta for t in (*module.parameters(), *module.buffers()))
    module.to_empty(device="cpu").load_state_dict(expected.state_dict())
    x = inputs(4, CHANNELS)
    assert torch.equal(module(x), expected(x))


@pytest.mark.parametrize("name", [name for name in LEARNABLE if "paper" in family(name).options["init"].allowed])
def test_paper_ignores_the_input_law(name: str) -> None:
    x = inputs(8, CHANNELS)
    narrow, wide = (activations.build(f"{name}:init=paper", CHANNELS, input_std=std) for std in (0.1, 2.0))
    assert torch.equal(narrow(x), wide(x))


@pytest.mark.parametrize("name", LEARNABLE)
def test_fit_gelu_approximates_gelu_itself(name: str) -> None:
    std = 0.5
    module = activations.build(f"{name}:init=fit-gelu", CHANNELS, input_std=std)
    x = torch.linspace(-2 * std, 2 * std, 101, dtype=torch.float64)[:, None].expand(-1, CHANNELS)
    largest = 0.08 if "prelu" in name.lower() else 0.05  # two slopes and a constant: 0.073
    assert (module.reference(x) - gelu(x)).abs().max() < largest


@pytest.mark.parametrize("name", LEARNABLE)
def test_not_learnable_means_buffers(name: str) -> None:
    frozen, free = (activations.build(f"{name}:learnable={flag}", CHANNELS) for flag in ("false", "true"))
    assert not list(frozen.parameters())
    assert list(free.parameters())
    assert frozen.state_dict().keys() == free.state_dict().keys()


CASES = [case for case in REFERENCE["cases"] if case["family"] in registry.FAMILIES]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_reference_vectors(case: dict[str, Any]) -> None:
    module, ours = _of_case(case)
    x = torch.tensor(REFERENCE["x"], dtype=torch.float64)
    expected, slope = (torch.tensor(case[key], dtype=torch.float64) for key in ("F", "dF_dx"))
    if "q" in case["params"]:  # ours is P / (1 + |A|): the same where A >= 0
        A = sum(q * x**j for j, q in enumerate(case["params"]["q"])) - 1
        x, expected, slope = x[A >= 0], expected[A >= 0], slope[A >= 0]
    scale = magnitude(module, x[:, None]).squeeze(1)
    leaf = x.clone().requires_grad_()
    y = module(leaf[:, None]).squeeze(1)
    assert ((y - expected).abs() <= 1e-13 * scale + 1e-15).all()
    y.sum().backward()
    assert leaf.grad is not None
    assert ((leaf.grad - slope).abs() <= 1e-12 * (scale + slope.abs()) + 1e-14).all()
    for key, name in ours.items():
        if f"dF_d{key}" in case and key != "q":
            parameter = getattr(module, name)
            rows = [torch.autograd.grad(module(point.reshape(1, 1)).sum(), parameter)[0].flatten() for point in x]
            derivative = torch.tensor(case[f"dF_d{key}"], dtype=torch.float64).reshape(len(REFERENCE["x"]), -1)[: len(x)]
            if len(x) == len(REFERENCE["x"]):
                torch.testing.assert_close(torch.stack(rows), derivative, rtol=1e-11, atol=1e-11)
    single = module.float()(x[:, None].float()).squeeze(1)
    assert ((single - expected).abs() <= 1e-6 * scale).all()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_reference_moments(case: dict[str, Any]) -> None:
    module, _ = _of_case(case)
    if case["family"] == "rational" and any(q for q in case["params"]["q"][1::2]):
        return  # its A changes sign: another function than ours
    for row in case["moments"]:
        found = module.moments(module.values(), row["sigma"])
        for value, key in zip(found, ("mean", "EF2", "EdF2"), strict=True):
            assert float(value) == pytest.approx(row[key], rel=1e-10, abs=1e-12)


def _of_case(case: dict[str, Any]) -> tuple[Learnable, dict[str, str]]:
    """The case's module in float64, and which of its parameters the case's names are."""
    kind = family(case["family"])
    params = dict(case["params"])
    params.pop("breakpoints", None)
    sizes = {"degree": case["n"]} | {key: len(params[key]) - 1 for key in ("p", "q") if key in params}
    options = {option: sizes[option] for option in kind.degrees} | {"per": "layer"}
    module = activations.build(
        spec(case["family"], **options, **({"groups": 1} if "groups" in kind.options else {})), 1
    ).double()
    assert isinstance(module, Learnable)
    ours = {key: next(name for name in PARAMETERS[key] if name in module.parameter_names) for key in params}
    if "q" in params:
        assert params["q"][0] == 1
        params["q"] = params["q"][1:]
    module.set_values({ours[key]: torch.tensor(value, dtype=torch.float64).reshape(-1) for key, value in params.items()})
    return module, ours
