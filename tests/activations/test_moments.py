"""The Poincare initialisation as a property of any basis, and moments against samples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import activations
from activations.moments import Moments, gauss_legendre, piecewise_linear, quadrature, unit_gain

NONE = torch.zeros(0, dtype=torch.float64)
weights = st.lists(st.floats(-2, 2).map(lambda w: round(w, 3)), min_size=4, max_size=4)


def basis(z: Tensor, w: list[float], kind: str) -> Tensor:
    if kind == "waves":
        return sum((c * torch.sin((k + 1) * z + k) for k, c in enumerate(w)), start=0.1 * z)
    if kind == "powers":
        return sum((c * z ** (k + 1) for k, c in enumerate(w)), start=0.1 * z)
    if kind == "bumps":
        return sum((c * torch.exp(-((z - k + 1.5) ** 2)) for k, c in enumerate(w)), start=0.1 * z)
    return sum((c * (z - k + 1.5).clamp(min=0) for k, c in enumerate(w)), start=0.1 * z)


@settings(max_examples=60, deadline=None)
@given(weights, st.sampled_from(["waves", "powers", "bumps", "hinges"]), st.floats(0.1, 3))
def test_scale_and_shift_give_unit_gain_in_any_basis(w: list[float], kind: str, std: float) -> None:
    kinks = torch.arange(4, dtype=torch.float64) - 1.5 if kind == "hinges" else NONE

    def h(z: Tensor) -> Tensor:
        return basis(std * z, w, kind)

    before = quadrature(h, 1.0, kinks / std)
    if before.slope < 1e-6:
        return  # constant: the theorem's only exception
    assert before.second - before.mean**2 <= before.slope * (1 + 1e-9), "Gaussian Poincare inequality"
    scale, shift = unit_gain(before)
    after = quadrature(lambda z: scale * h(z) + shift, 1.0, kinks / std)
    assert float(after.second) == pytest.approx(1, abs=1e-9)
    assert float(after.slope) == pytest.approx(1, abs=1e-9)
    assert float(after.mean) >= -1e-9


def test_affine_functions_are_the_equality_case() -> None:
    scale, shift = unit_gain(quadrature(lambda z: 3 * z + 2, 1.0, NONE))
    assert float(scale) == pytest.approx(1 / 3)
    assert float(shift + scale * 2) == pytest.approx(0, abs=1e-6)


def test_absolute_continuity_is_needed() -> None:
    """A jump has no derivative to pay for it: the variance exceeds E h'^2, and no shift can help."""
    jump = torch.zeros(1, dtype=torch.float64)
    found = quadrature(lambda z: z + 10 * (z > 0), 1.0, jump)
    assert float(found.slope) == pytest.approx(1)
    assert float(found.second - found.mean**2) == pytest.approx(26 + 20 / math.sqrt(2 * math.pi), rel=1e-9)


def test_quadrature_is_exact_on_moments_and_near_poles() -> None:
    found = quadrature(lambda z: z**4, 0.7, NONE)
    assert [float(m) for m in found] == pytest.approx([3 * 0.7**4, 105 * 0.7**8, 16 * 15 * 0.7**6], rel=1e-12)
    near = quadrature(lambda z: 1 / (z**2 + 0.04), 1.0, NONE)
    exact = math.sqrt(math.pi / 2) / 0.2 * math.exp(0.02) * math.erfc(0.2 / math.sqrt(2))
    assert float(near.mean) == pytest.approx(exact, rel=1e-12)


def test_gauss_legendre_integrates_polynomials() -> None:
    nodes, weights = gauss_legendre(16)
    for power in range(0, 32, 2):
        assert float((weights * nodes**power).sum()) == pytest.approx(2 / (power + 1), rel=1e-12)


def test_piecewise_linear_allows_spurious_breakpoints() -> None:
    def relu(z: Tensor) -> tuple[Tensor, Tensor]:
        return (z > 0).double(), torch.zeros_like(z)

    breaks = torch.tensor([0.3, torch.inf, 0.0, -1.0, 0.3], dtype=torch.float64)
    found = piecewise_linear(breaks, relu, 2.0)
    assert [float(m) for m in found] == pytest.approx([2 / math.sqrt(2 * math.pi), 2.0, 0.5], rel=1e-12)


def test_unit_gain_of_gelu_is_the_published_pair() -> None:
    gelu = activations.build("gelu:exact=true", 1)
    scale, shift = unit_gain(Moments(*gelu.moments({}, 1.0)))
    assert float(scale) == pytest.approx(1.4811144127083482, rel=1e-12)
    assert float(shift) == pytest.approx(0.07387707731491364, rel=1e-10)


def test_gains_of_fixed_activations_are_of_x_itself() -> None:
    assert activations.gains(activations.build("relu", 1, 0.5)) == pytest.approx((0.125, 0.5))
    assert activations.gains(activations.build("relu", 1, 0.5), std=2.0) == pytest.approx((2.0, 0.5))
    with pytest.raises(ValueError, match="not ReLU"):
        activations.gains(torch.nn.ReLU())
