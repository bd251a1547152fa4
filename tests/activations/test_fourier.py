"""Fourier: the three documented initialisations, bounds, and torchortho's values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import activations
from activations import fourier
from activations.engine import Pointwise
from activations.moments import gauss_legendre

UNIT = {1: (0, 1.414213562), 2: (0.374651418, 0.788960919), 3: (0.461392799, 0.689661137), 6: (0.476708344, 0.674174898)}
PAPER = {1: (0, 1.414214), 2: (0.612372, 1.0), 3: (0.657342, 0.942809), 5: (0.662314, 0.936686)}


@pytest.mark.parametrize(("init", "table"), [("unit", UNIT), ("paper", PAPER)])
def test_initial_amplitudes(init: str, table: dict[int, tuple[float, float]]) -> None:
    for degree, (constant, rest) in table.items():
        amplitudes = activations.build(f"fourier:degree={degree},init={init}", 1).amplitudes
        assert isinstance(amplitudes, torch.Tensor)
        assert amplitudes.tolist() == pytest.approx([constant] + [rest] * degree, abs=1e-6)


@pytest.mark.parametrize("degree", [1, 3, 5])
def test_paper_is_unit_under_the_uniform_law(degree: int) -> None:
    module = activations.build(f"fourier:degree={degree},init=paper", 1).double()
    nodes, weights = gauss_legendre(64)
    x = (torch.pi * nodes).requires_grad_()
    y = module(x[:, None]).squeeze(1)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (weights / 2 * y.square()).sum().item() == pytest.approx(1, rel=1e-6)
    assert float((weights / 2 * slope.square()).sum()) == pytest.approx(1, rel=1e-6)


def test_gains_of_the_three_under_the_normal_law() -> None:
    def of(init: str) -> tuple[float, float]:
        return activations.gains(activations.build(f"fourier:degree=5,init={init}", 1))

    assert of("unit") == pytest.approx((1, 1))
    assert of("paper") == pytest.approx((1.93, 1.93), abs=0.01)
    assert of("library") == pytest.approx((1.307, 0.965), abs=1e-3)


def test_it_is_bounded() -> None:
    module = activations.build("fourier", 1)
    values = module.values()["amplitudes"]
    assert module(torch.linspace(-1e4, 1e4, 1000)[:, None]).abs().max() <= values.abs().sum()


@pytest.mark.parametrize("degree", [1, 3, 5])
def test_library_is_torchortho(degree: int) -> None:
    torchortho = pytest.importorskip("torchortho", reason="the authors' library (GPL) is installed for tests only")
    peer = torchortho.FourierActivation(degree)
    ours = activations.build(f"fourier:degree={degree},init=library", 1)
    pairs = [("frequencies", peer.grid), ("phases", peer.phases)]
    amplitudes = torch.cat([peer.fundamental, peer.coefficients])
    assert ours.amplitudes.tolist() == pytest.approx(amplitudes.tolist(), abs=1e-6)
    results = []
    for module in (ours, peer):
        x = torch.linspace(-2, 2, 64).reshape(-1, 1).requires_grad_()
        y = module(x)
        (y * torch.cos(x.detach())).sum().backward()
        results.append((y.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for name, theirs in pairs:
        torch.testing.assert_close(getattr(ours, name).grad, theirs.grad, rtol=1e-5, atol=2e-5)
    gradient = torch.cat([peer.fundamental.grad, peer.coefficients.grad])
    torch.testing.assert_close(ours.amplitudes.grad, gradient, rtol=1e-5, atol=2e-5)


def test_half_angle_polynomials_are_accurate_to_float32():
    theta = torch.linspace(-40, 40, 200001)
    s, c = fourier._half_angle(theta, torch.tensor(1.0), torch.tensor(0.0))
    allowed = 4e-7 + theta.abs().double() * 2**-23  # the phase itself is rounded
    assert ((1 - 2 * s * s - theta.double().cos()).abs() <= allowed).all()
    assert ((2 * s * c - theta.double().sin()).abs() <= allowed).all()


@given(st.floats(-(2.0**127), 2.0**127, width=32), st.floats(-100, 100, width=32), st.floats(-7, 7, width=32))
@settings(deadline=None)
def test_is_bounded_by_its_amplitudes_at_every_finite_input(x, w, phi):
    y = Pointwise(fourier.KERNEL, torch.tensor([0.5, 2.0]), torch.tensor([w]), torch.tensor([phi]))(torch.tensor([x]))
    assert abs(y.item() - 0.5) <= 2.0 * (1 + 1e-6)


def test_frequencies_need_not_be_multiples_of_one():
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    w, phi = torch.tensor([0.3, 2.9], dtype=torch.float64), torch.tensor([0.1, -2.0], dtype=torch.float64)
    y = Pointwise(fourier.KERNEL, torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64), w, phi)(x)
    torch.testing.assert_close(y, 1 + 0.5 * torch.cos(0.3 * x - 0.1) + 0.25 * torch.cos(2.9 * x + 2.0))
