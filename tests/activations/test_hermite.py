"""Hermite: golden numbers of its initialisations, overflow in float16, and torchortho's values."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import activations
from activations.hermite import POWER_BASIS_DEGREE, Hermite, basis, rescale

# a_0, a_k at unit gain and the gain of the published initialisation, by degree.
UNIT = {
    1: (0, 1, 0.368),
    2: (0.5, 0.707106781, 0.736),
    3: (0.577350269, 0.632455532, 0.920),
    8: (0.606526246, 0.606533768, 1.0),
}


@pytest.mark.parametrize("degree", UNIT)
def test_initial_coefficients(degree: int) -> None:
    constant, rest, paper_gain = UNIT[degree]
    coefficients = activations.build(f"hermite:degree={degree}", 1).coefficients
    assert isinstance(coefficients, torch.Tensor)
    assert coefficients.tolist() == pytest.approx([constant] + [rest] * degree, abs=1e-7)
    paper = activations.build(f"hermite:degree={degree},init=paper", 1)
    assert activations.gains(paper) == pytest.approx((paper_gain, paper_gain), abs=1e-3)


@pytest.mark.parametrize(("degree", "above", "below"), [(3, 84, 86), (5, 25, 27), (8, 14, 17)])
def test_float16_overflows_where_documented(degree: int, above: int, below: int) -> None:
    module = activations.build(f"hermite:degree={degree}", 1)
    x = torch.tensor([above, above + 1, -below, -below - 1], dtype=torch.float16)[:, None]
    assert module(x).isinf().flatten().tolist() == [False, True, False, True]
    assert f"{above}" in (Hermite.__doc__ or "")
    assert f"-{below}" in (Hermite.__doc__ or "")


def test_a_clamped_series_is_the_series_inside_its_bound_and_constant_outside() -> None:
    """The bound starts at sqrt(3) standard deviations, is trained, and may change its sign."""
    plain, clamped = (activations.build(f"hermite:degree=3{more}", 1, 0.5).double() for more in ("", ",clamp=true"))
    assert clamped.bound.tolist() == pytest.approx([math.sqrt(3)])
    clamped.coefficients.data = plain.coefficients.data
    clamped.bound.data.neg_()
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    bound = 0.5 * clamped.bound.abs().item()
    assert x.abs().max() > bound
    torch.testing.assert_close(clamped(x), plain(x.clamp(-bound, bound)))
    clamped(x[:3]).sum().backward()
    assert clamped.bound.grad.abs() > 0
    assert "clamp" not in plain.spec, "specs that were recorded before there was a clamp stay canonical"


def test_rescaling_is_a_change_of_variable() -> None:
    a = torch.tensor([0.3, -1.0, 0.5, 2.0, -0.7], dtype=torch.float64)
    z = torch.linspace(-3, 3, 20, dtype=torch.float64)
    for ratio in (0.3, 1.0, 1.7):
        original = sum(c * g for c, g in zip(a, basis(ratio * z, 5), strict=True))
        rescaled = sum(c * g for c, g in zip(rescale(a, ratio), basis(z, 5), strict=True))
        torch.testing.assert_close(rescaled, original)


def test_fit_agrees_with_the_projection_in_powers_of_x(reference: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    for degree in (3, 5, 8):
        module = activations.build(f"hermite:degree={degree}", 1).double()
        activations.fit(module, lambda x: x * torch.special.ndtr(x))
        expected = reference["targets"]["gelu_sigma1.5_in_He_k_of_x"][f"n{degree}"]
        assert module.values()["coefficients"].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("degree", [1, 3, 5, 8])
def test_paper_is_torchortho(degree: int) -> None:
    torchortho = pytest.importorskip("torchortho", reason="the authors' library (GPL) is installed for tests only")
    peer = torchortho.HermiteActivation(degree)
    ours = activations.build(f"hermite:degree={degree},init=paper", 1)
    assert ours.coefficients.tolist() == pytest.approx(peer.coefficients.tolist(), rel=1e-6)
    results = []
    for module in (ours, peer):
        x = torch.linspace(-2, 2, 64).reshape(-1, 1).requires_grad_()
        y = module(x)
        (y * torch.cos(x.detach())).sum().backward()
        results.append((y.detach(), x.grad, module.coefficients.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_degree_sets_the_gain_and_not_the_shape_alone() -> None:
    assert math.isclose(sum(1 / math.factorial(k) for k in range(3)), 2.5)
    assert activations.gains(activations.build("hermite:degree=3,init=paper", 1))[0] == pytest.approx(2.5 / math.e)


def series(a: torch.Tensor, std: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """x (n,) -> the series with coefficients a (k,), by the fast path."""
    module = activations.build(f"hermite:degree={len(a) - 1}", 1, std).to(a.dtype)
    module.set_values({"coefficients": a})
    return lambda x: module(x[:, None])[:, 0]


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
    y = series(a, std)(x).detach().double().numpy()
    wanted, magnitude = exact(a.double().tolist(), x, std)
    # Rounding x/std costs up to 2^-24 |z F'|, which is inherent to a float32 argument.
    slope = np.abs(np.gradient(wanted, x.double().numpy()) * x.double().numpy()) * 2**-24
    assert (np.abs(y - wanted) <= 2e-6 * magnitude + 2 * slope).all()


@pytest.mark.parametrize("degree", [POWER_BASIS_DEGREE, POWER_BASIS_DEGREE + 1])
def test_both_bases_meet(degree):
    a = torch.ones(degree + 1, dtype=torch.float64)
    x = torch.linspace(-8, 8, 101, dtype=torch.float64)
    wanted, _ = exact(a.tolist(), x, 0.5)
    np.testing.assert_allclose(series(a, 0.5)(x).detach().numpy(), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("degree", range(1, 17))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_saturates_with_the_sign_of_the_leading_term(degree, sign):
    vanishing = [0.0] * (degree < 16)  # a last coefficient of zero leads nothing
    a = torch.cat([torch.randn(degree), torch.tensor([2 * sign, *vanishing])])
    y = series(a, 0.01)(torch.tensor([3e38, -3e38]))
    assert y.tolist() == [sign * torch.inf, sign * (-1) ** degree * torch.inf]
