"""Fits: at least as good as the table of the derivations, deterministic, in place."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import activations
from activations.activation import Learnable
from activations.fit import report
from activations.target import Weight, gelu

# Maximal and RMS error on |x| <= 3 for GELU, with a unit of the last digit that the derivations print.
TABLE = [
    ("hermite:degree=3", None, 0.2035, 0.1415),
    ("hermite:degree=5", None, 0.1175, 0.0695),
    ("hermite:degree=8", None, 0.0495, 0.0295),
    ("hermite:degree=3", 1.0, 0.4795, 0.1475),
    ("hermite:degree=5", 1.0, 0.0935, 0.0475),
    ("hermite:degree=8", 1.0, 0.0305, 0.01055),
    ("fourier:degree=6", None, 5.05e-3, 3.15e-3),
    ("tpgu:degree=3", None, 0.0885, 0.0485),
    ("tpgu:degree=5", None, 0.0675, 0.0195),
    ("tropical:degree=6", None, 0.0845, 0.0415),
    ("tropical:degree=12", None, 0.0845, 0.0415),
    ("tropical_rational:degree=6", None, 8.45e-3, 2.45e-3),
    ("tropical_rational:degree=12", None, 2.05e-3, 5.85e-4),
    ("rational", None, 7e-3, 3e-3),
]


@pytest.mark.parametrize(("spec", "std", "largest", "rms"), TABLE)
def test_errors_are_those_of_the_table(spec: str, std: float | None, largest: float, rms: float) -> None:
    found = activations.fit(activations.build(spec, 8), gelu, std)
    assert found.value_max <= largest
    assert found.value_rms <= rms


@pytest.mark.parametrize(
    ("spec", "function", "largest"),
    [
        ("tropical:degree=1", F.relu, 1e-3),
        ("hermite:degree=5", F.silu, 0.0345 * 2),
        ("tpgu:degree=5", F.silu, 0.0165),
        ("tropical_rational:degree=12", F.silu, 0.0035),
        ("tropical:degree=6", F.silu, 0.0895),
        ("tropical:degree=6", lambda x: -x.abs(), 3.1),  # concave, but with a slope that changes sign: the best is far
        ("tropical:degree=4", lambda x: -F.softplus(x), 0.05),  # concave: a negative scale
        ("fourier:degree=6", torch.sin, 0.02),
        ("rational", torch.tanh, 0.02),
    ],
)
def test_any_function_can_be_a_target(spec: str, function: object, largest: float) -> None:
    assert callable(function)
    assert activations.fit(activations.build(spec, 8), function).value_max <= largest


@pytest.mark.parametrize("name", [name for name in activations.names() if name not in ("gelu", "relu", "silu", "relu_squared")])
@pytest.mark.parametrize("std", [None, 0.3])
def test_fit_is_deterministic_and_in_place(name: str, std: float | None) -> None:
    state = torch.get_rng_state()
    modules = [activations.build(f"{name}:per=channel", 8, input_std=0.4) for _ in range(2)]
    before = [id(parameter) for parameter in modules[0].parameters()]
    reports = [activations.fit(module, gelu, std) for module in modules]
    assert reports[0] == reports[1]
    assert [id(parameter) for parameter in modules[0].parameters()] == before
    assert all(torch.equal(a, b) for a, b in zip(modules[0].parameters(), modules[1].parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_unit_does_not_change_the_fit() -> None:
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)[:, None].expand(-1, 4)
    shapes = []
    for std in (0.25, 1.0, 2.0):
        module = activations.build("hermite:degree=6", 4, input_std=std).double()
        activations.fit(module, gelu, std=1.2)
        shapes.append(module.reference(x))
    torch.testing.assert_close(shapes[0], shapes[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shapes[2], shapes[1], rtol=1e-9, atol=1e-9)


def test_report_measures_the_module_as_it_is() -> None:
    module = activations.build("hermite:degree=1,init=paper", 2)
    assert isinstance(module, Learnable)
    module.set_values({"coefficients": torch.tensor([0.0, 1.0], dtype=torch.float64)})  # F(x) = x
    found = report(module, lambda x: x + 0.5, Weight("normal", 1.0))
    assert (found.value_rms, found.value_max, found.slope_max) == pytest.approx((0.5, 0.5, 0.0))
    assert found.tails == ((-6.0, -6.0, -5.5), (6.0, 6.0, 6.5))
    assert "N(0, 1^2)" in str(found)


def test_fit_sets_the_range_that_telemetry_watches() -> None:
    module = activations.build("fourier", 4)
    activations.fit(module, gelu)
    assert float(module.fitted_range) == 6
    activations.fit(module, gelu, std=0.5)
    assert float(module.fitted_range) == 1.5


@pytest.mark.parametrize(("spec", "std"), [("gelu", None), ("hermite", 0.0), ("hermite", float("nan"))])
def test_bad_arguments_are_named(spec: str, std: float | None) -> None:
    with pytest.raises(ValueError, match=r"fit"):
        activations.fit(activations.build(spec, 4), gelu, std)


def test_reference_projections_of_gelu_relu_and_silu(reference: dict[str, object]) -> None:
    targets = reference["targets"]
    assert isinstance(targets, dict)
    functions: dict[str, object] = {"gelu": gelu, "relu": torch.relu, "silu": F.silu}
    for name, function in functions.items():
        for row in targets[name]:
            module = activations.build("hermite:degree=12", 1, input_std=row["sigma"]).double()
            activations.fit(module, function, std=row["sigma"])  # type: ignore[arg-type]
            projected = torch.tensor(row["A"], dtype=torch.float64) / row["sigma"]
            torch.testing.assert_close(_coefficients(module), projected, rtol=1e-6, atol=1e-6)


def _coefficients(module: torch.nn.Module) -> Tensor:
    coefficients = module.coefficients
    assert isinstance(coefficients, Tensor)
    return coefficients.detach()
