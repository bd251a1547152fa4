"""TPGU: the projection of GELU, the published start, and derivatives of the sigmoid at any order."""

import math

import pytest
import torch

import activations
from activations.tpgu import SLOPE, TPGU, _derivatives

SLOPE_GAIN = {1: 1.124, 2: 1.124, 3: 1.099, 4: 1.099, 5: 1.085}


@pytest.mark.parametrize("degree", SLOPE_GAIN)
def test_initial_coefficients_are_the_scaled_projection(degree: int, reference: dict[str, list[dict[str, object]]]) -> None:
    case = next(case for case in reference["cases"] if case["id"] == f"tpgu_n{degree}_gelu_unit")
    module = activations.build(f"tpgu:degree={degree},per=layer", 1)
    params = case["params"]
    assert isinstance(params, dict)
    assert module.values()["coefficients"].tolist() == pytest.approx(params["a"], abs=1e-6)
    assert module.values()["expansion_point"].tolist() == [params["b"]]
    assert activations.gains(module) == pytest.approx((1, SLOPE_GAIN[degree]), abs=1e-3)


def test_paper_is_a_nearly_linear_network_at_half_gain() -> None:
    module = activations.build("tpgu:degree=3,init=paper", 256)
    coefficients = module.values()["coefficients"]
    assert (coefficients[:, 0] == 1).all()
    assert float(coefficients[:, 1:].std()) == pytest.approx(0.0176, abs=0.002)  # 0.02 cut at two standard deviations
    assert coefficients[:, 1:].abs().max() <= 0.04
    assert activations.gains(module) == pytest.approx((0.25, 0.25), abs=0.02)


def test_derivatives_of_the_sigmoid() -> None:
    """S_k by autograd, k times, against the polynomials in tanh."""
    b = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    S = torch.sigmoid(SLOPE * b)
    powers = torch.tanh(SLOPE / 2 * b.detach()) ** torch.arange(10, dtype=torch.float64)
    for k, row in enumerate(_derivatives(8)):
        assert float((row * powers).sum()) * math.factorial(k) == pytest.approx(float(S.detach()), rel=1e-10)
        (S,) = torch.autograd.grad(S, b, create_graph=True)


def test_integration_by_parts_identity() -> None:
    """E F'^2 = E F^2 / s^2 + E[x^2 P'^2] >= E F^2 / s^2: why unit gain cannot be had."""
    module = activations.build("tpgu", 4, input_std=0.5)
    for std in (0.3, 0.5, 1.0):
        second, slope = activations.gains(module, std)
        assert slope >= second / std**2


def test_documented_overflow_in_float16() -> None:
    for degree, largest in ((1, 430), (3, 40), (5, 18)):
        module = activations.build(f"tpgu:degree={degree}", 1)
        assert module(torch.tensor([[largest]], dtype=torch.float16)).isfinite().all()
        assert module(torch.tensor([[largest + 4.0]], dtype=torch.float16)).isinf().all()
        assert str(largest) in (TPGU.__doc__ or "")
