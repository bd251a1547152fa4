"""Accuracy of the power basis and of the recurrence, and the limits at infinity."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations.kernels.hermite import POWER_BASIS_DEGREE, hermite


def exact(a: list[float], x: torch.Tensor, std: float) -> tuple[np.ndarray, np.ndarray]:
    """The series, and the sum of the magnitudes of its terms, in float64."""
    z = x.double().numpy() / std
    terms = [std * a_k * np.polynomial.hermite_e.hermeval(z, [0] * k + [1]) / math.factorial(k) for k, a_k in enumerate(a)]
    return sum(terms), sum(np.abs(t) for t in terms)


@given(st.integers(1, 16), st.floats(0.2, 3), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_float32_error_is_below_a_millionth_of_the_terms(degree, std, growing, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(degree + 1, generator=generator)
    a[0] = 1  # where all terms vanish at once no float evaluation has relative accuracy
    if growing:
        a *= torch.tensor([math.sqrt(math.factorial(k)) for k in range(degree + 1)])
    std = float(torch.tensor(std))
    x = std * torch.linspace(-6, 6, 2001)
    y = hermite(a, torch.tensor(std))(x).double().numpy()
    series, magnitude = exact(a.double().tolist(), x, std)
    # Rounding x/std costs up to 2^-24 |z F'|, which is inherent to a float32 argument.
    slope = np.abs(np.gradient(series, x.double().numpy()) * x.double().numpy()) * 2**-24
    assert (np.abs(y - series) <= 2e-6 * magnitude + 2 * slope).all()


@pytest.mark.parametrize("degree", [POWER_BASIS_DEGREE, POWER_BASIS_DEGREE + 1])
def test_both_bases_meet(degree):
    a = torch.ones(degree + 1, dtype=torch.float64)
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)
    series, _ = exact(a.tolist(), x, 0.5)
    np.testing.assert_allclose(hermite(a, torch.tensor(0.5))(x).numpy(), series, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("degree", range(1, 17))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_saturates_with_the_sign_of_the_leading_term(degree, sign):
    a = torch.cat([torch.randn(degree), torch.tensor([2 * sign, 0.0])])  # a vanishing last coefficient leads nothing
    y = hermite(a, torch.tensor(0.01))(torch.tensor([3e38, -3e38]))
    assert y.tolist() == [sign * torch.inf, sign * (-1) ** degree * torch.inf]
