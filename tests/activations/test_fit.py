"""Fits: at least as good as the table of the derivations, deterministic, in place."""

import functools
import math
from collections.abc import Callable

import numpy
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor

import activations
from activations import solve
from activations.activation import Learnable
from activations.fit import report
from activations.moments import differentiate
from activations.target import Target, Weight, gelu, silu

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
    ("tropical_rational:degree=12", None, 2.3e-3, 5.85e-4),  # its knots serve the RMS on |x| <= 6, not the maximum on 3
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


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "silu": silu,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "steep": lambda x: torch.sigmoid(8 * x),
}
# Weighted RMS under the default weight, the square root of what a fit minimises (tropical ones by value alone): some 5 to 15 %
# above what is reached. The comments say how many times as much commit 1fee517 reached.
REACHED = {
    "fourier:degree=6": (8e-4, 3e-4, 9e-2, 1.1e-3, 3e-5, 1.6e-1),  # 13, 7, 1.2, 33, 13, 1.5
    "rational:p=5,q=4,groups=1": (6.6e-3, 2.2e-4, 7.7e-2, 2.8e-4, 3.3e-4, 1.01e-2),  # 1.4, 13, 1, 1, 2.3, 1.1
    "rational:p=8,q=8,groups=1": (2.4e-4, 1e-6, 2.3e-2, 1e-7, 1e-6, 1.4e-4),  # 25, 4000, 1, 10, 600, 85
    "tropical_rational:degree=6": (1.6e-3, 3.1e-3, 1e-9, 2.2e-3, 7e-3, 4.5e-4),  # 1.2, 1.1, 1, 1.2, 1.3, 1.4
    "tropical_rational:degree=3": (5.8e-3, 1.1e-2, 1e-9, 6.9e-3, 3.4e-2, 2.4e-3),  # 2, 1.5, 1, 1.5, 1, 1.2
    "tropical:degree=6": (4.2e-2, 2.7e-2, 1e-9, 1.9e-1, 6.5e-3, 1.95e-1),  # 1, 1, 1, 1, 1.4, 1
}


@functools.cache
def weighted_rms(spec: str, function: Callable[[Tensor], Tensor], law: Weight | None = None) -> float:
    module = activations.build(spec, 1)
    assert isinstance(module, Learnable)
    target = Target.sample(function, law or module.default_weight)
    values = module.fitted(target)
    found, slope = differentiate(lambda z: module.evaluate(values, z), target.z[:, None])
    square = (found[:, 0] - target.value).square()
    if "tropical" not in spec:
        square = square + target.slope_scale**2 * (slope[:, 0] - target.slope).square()
    return float((target.weight * square).sum().sqrt())


@pytest.mark.parametrize(
    ("spec", "name", "largest"),
    [(spec, name, bound) for spec, bounds in REACHED.items() for name, bound in zip(TARGETS, bounds, strict=True)],
)
def test_refined_fits_reach_what_was_measured(spec: str, name: str, largest: float) -> None:
    assert weighted_rms(spec, TARGETS[name]) <= largest


def test_fourier_reaches_softplus_under_the_price_of_rounding() -> None:
    """scipy over amplitudes and frequencies, under the same price, came to 9.27e-4 with amplitudes of 375 in 1500 evaluations.

    Softplus is a parabola plus little: without a price the amplitudes grow while the lowest frequency falls, 6.6e3 and on.
    """
    assert weighted_rms("fourier:degree=3", F.softplus) <= 1.02 * 9.27e-4


@pytest.mark.parametrize("name", ["gelu", "tanh", "steep"])
def test_an_independent_solver_finds_no_better_fourier_series(name: str) -> None:
    """scipy over amplitudes and frequencies together, under the same price of rounding, from three other starts."""
    degree, target = 3, Target.sample(TARGETS[name], Weight("uniform", 6.0))

    def split(theta: numpy.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        c, w = torch.from_numpy(theta).split([1 + 2 * degree, degree])
        angle = target.z[:, None] * w
        one = torch.ones_like(angle[:, :1])
        slopes = torch.cat([0 * one, -w * angle.sin(), w * angle.cos()], dim=1)
        return *solve.stack(target, torch.cat([one, angle.cos(), angle.sin()], dim=1), slopes), c

    def residuals(theta: numpy.ndarray) -> numpy.ndarray:
        matrix, right, c = split(theta)
        return torch.cat([matrix @ c - right, solve.ROUNDING * matrix.norm(dim=0) * c]).numpy()

    found = []
    for low, high in ((0.2, 0.9), (0.4, 1.5), (0.3, 3.0)):
        start = numpy.r_[numpy.zeros(1 + 2 * degree), numpy.linspace(low, high, degree)]
        found.append(scipy.optimize.least_squares(residuals, start, method="lm", max_nfev=150))
    best = min(found, key=lambda one: float(one.cost))
    unpriced = float(numpy.linalg.norm(residuals(best.x)[: 2 * len(target.z)]))
    assert weighted_rms(f"fourier:degree={degree}", TARGETS[name]) <= 1.02 * unpriced


@pytest.mark.parametrize("name", ["gelu", "tanh", "steep"])
@pytest.mark.parametrize("n", [3, 6])
def test_tropical_rationals_come_near_the_best_number_of_pieces(name: str, n: int) -> None:
    """The best continuous broken line of N pieces errs by J^(5/2) / (sqrt(720) N^2) in RMS for large N (de Boor 1973).

    J is the integral of density^(1/5) |f''|^(2/5).
    """
    x = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    _, slope = differentiate(TARGETS[name], x)
    bend = slope.diff().abs() / x.diff()
    J = float(((1 / 12) ** 0.2 * bend**0.4 * x.diff()).sum())
    bound = J**2.5 / (720**0.5 * (2 * n + 1) ** 2)
    assert weighted_rms(f"tropical_rational:degree={n}", TARGETS[name]) <= 2.0 * bound


# What commit 1a28477, before frequencies, denominators and knots were freed, reached. The kinks of |A| had made some worse.
BEFORE = [
    ("rational:p=4,q=4,groups=1", Weight("normal", 1.0), "gelu", 8.78e-3),
    ("rational:p=4,q=4,groups=1", Weight("normal", 1.0), "softplus", 1.8e-4),
    ("rational:p=4,q=4,groups=1", Weight("uniform", 6.0), "silu", 3.47e-2),
    ("rational:p=3,q=3,groups=1", Weight("normal", 1.0), "gelu", 6.25e-3),
    ("rational:p=2,q=2,groups=1", Weight("uniform", 6.0), "gelu", 2.93e-1),
    ("rational:p=2,q=2,groups=1", Weight("uniform", 6.0), "silu", 2.26e-1),
    ("tropical:degree=32", Weight("uniform", 3.0), "softplus", 3.46e-4),
    ("tropical:degree=3", Weight("uniform", 3.0), "steep", 1.93e-1),
]


@pytest.mark.parametrize(("spec", "law", "name", "before"), BEFORE)
def test_refining_is_never_worse_than_before(spec: str, law: Weight, name: str, before: float) -> None:
    assert weighted_rms(spec, TARGETS[name], law) <= before


@pytest.mark.parametrize("degree", [1, 3, 6, 12])
def test_freeing_the_frequencies_is_never_worse(degree: int) -> None:
    """Than least squares at w_k = k pi / 12, half of whose period is twice the range."""
    for function in TARGETS.values():
        target = Target.sample(function, Weight("uniform", 6.0))
        angle = target.z[:, None] * torch.arange(1, degree + 1) * math.pi / 12
        w = torch.arange(1, degree + 1) * math.pi / 12
        one = torch.ones_like(angle[:, :1])
        basis = torch.cat([one, angle.cos(), angle.sin()], dim=1)
        slopes = torch.cat([0 * one, -w * angle.sin(), w * angle.cos()], dim=1)
        matrix, right = solve.stack(target, basis, slopes)
        harmonic = float((matrix @ solve.linear(target, basis, slopes) - right).norm())
        assert weighted_rms(f"fourier:degree={degree}", function) <= harmonic * (1 + 1e-9)
