"""Tropical: every piece alive at unit gain, the published start, convexity, and torchortho's values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import activations
from activations.engine import Pointwise
from activations.tropical import KERNEL, active, crossings, intercepts, quantiles, thresholds

UNIT = {1: (1.414213562, 0.0), 2: (0.774596669, -0.195010587), 6: (0.277350098, -0.415172589), 12: (0.141421356, -0.498169889)}


@pytest.mark.parametrize("degree", UNIT)
def test_initial_scale_and_shift(degree: int) -> None:
    scale, shift = UNIT[degree]
    values = activations.build(f"tropical:degree={degree}", 1).values()
    assert float(values["scale"]) == pytest.approx(scale, abs=1e-7)
    assert float(values["scale"] * values["intercepts"][0]) == pytest.approx(shift, abs=1e-6)


@pytest.mark.parametrize("degree", [1, 5, 12])
def test_pieces_are_equally_likely(degree: int) -> None:
    values = activations.build(f"tropical:degree={degree}", 1).values()
    z = torch.special.ndtri((torch.arange(10000, dtype=torch.float64) + 0.5) / 10000)
    slopes, _ = active(torch.arange(degree + 1, dtype=torch.float64), values["intercepts"], z)
    shares = torch.bincount(slopes.long(), minlength=degree + 1) / len(z)
    assert shares.tolist() == pytest.approx([1 / (degree + 1)] * (degree + 1), abs=2e-3)


@pytest.mark.parametrize("degree", [1, 4, 6])
def test_paper_is_relu_with_dead_pieces(degree: int) -> None:
    module = activations.build(f"tropical:degree={degree},init=paper", 1)
    x = torch.linspace(-3, 3, 61)[:, None]
    torch.testing.assert_close(module(x), math.sqrt(2) * (x.clamp(min=0) + 1 / degree))
    assert [name for name, _ in module.named_parameters()] == ["intercepts"], "the scale is frozen"
    module(x[x.abs() > 0.05][:, None]).sum().backward()
    gradient = module.intercepts.grad
    assert isinstance(gradient, torch.Tensor)
    assert (gradient != 0).nonzero().flatten().tolist() == [0, degree]


def test_breakpoints_and_intercepts_invert_each_other() -> None:
    slopes, t = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64), torch.tensor([-1.0, 0.7], dtype=torch.float64)
    met = crossings(slopes, intercepts(slopes, t, 0.3))
    assert met[[0, 2]].tolist() == pytest.approx(t.tolist())
    assert crossings(torch.ones(2), torch.tensor([0.0, 1.0])).tolist() == [math.inf]
    assert quantiles(3).tolist() == pytest.approx([-0.6744897502, 0, 0.6744897502])


def test_a_negative_scale_makes_it_concave() -> None:
    module = activations.build("tropical:degree=4", 1)
    activations.fit(module, lambda x: -torch.nn.functional.softplus(x))
    assert float(module.values()["scale"]) < 0


@pytest.mark.parametrize("degree", [2, 6])
def test_agrees_with_torchortho(degree: int) -> None:
    torchortho = pytest.importorskip("torchortho", reason="the authors' library (GPL) is installed for tests only")
    peer, ours = torchortho.TropicalActivation(degree), activations.build(f"tropical:degree={degree},init=paper", 1)
    assert ours.intercepts.tolist() == peer.coefficients.tolist()
    a = torch.randn(degree + 1, generator=torch.Generator().manual_seed(0))
    results = []
    for module, parameter in ((ours, ours.intercepts), (peer, peer.coefficients)):
        with torch.no_grad():
            parameter.copy_(a)
        x = torch.linspace(-2, 2, 64).reshape(-1, 1).requires_grad_()
        y = module(x)
        (y * torch.cos(x.detach())).sum().backward()
        results.append((y.detach(), x.grad, parameter.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


lines = st.integers(2, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-6, 6), min_size=n, max_size=n).map(sorted), st.lists(st.integers(-8, 8), min_size=n, max_size=n)
    )
)


@given(lines, st.floats(-20, 20))
@settings(deadline=None)
def test_thresholds_count_up_to_the_largest_line(pairs, x):
    """Equal slopes and triple points included: the number of thresholds below x indexes a line that is the largest there."""
    slopes, intercepts = (torch.tensor([values], dtype=torch.float64) for values in pairs)
    steps = thresholds(slopes, intercepts)[0]
    assert (steps.diff() >= 0).logical_or(steps.diff().isnan()).all()
    values = (slopes * x + intercepts)[0]
    torch.testing.assert_close(values[int((x > steps).sum())], values.max(), rtol=1e-12, atol=1e-9)


def test_at_a_tie_the_piece_of_lowest_slope_gets_the_gradient():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    scale, intercepts = torch.ones(1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    dx, db = torch.autograd.grad(Pointwise(KERNEL, scale, intercepts)(x).sum(), [x, intercepts])
    assert dx.item() == 0
    assert db.tolist() == [1, 0, 0]


def test_a_piece_that_is_never_the_largest_gets_none():
    intercepts = torch.tensor([0.0, -5.0, 0.0], requires_grad=True)
    (db,) = torch.autograd.grad(Pointwise(KERNEL, torch.ones(1), intercepts)(torch.linspace(-3, 3, 1001)).sum(), intercepts)
    assert db[1] == 0
    assert db[0] > 0
    assert db[2] > 0


def test_one_piece_is_a_shifted_relu():
    x = torch.randn(100)
    torch.testing.assert_close(Pointwise(KERNEL, torch.tensor([1.5]), torch.tensor([0.0, 0.0]))(x), 1.5 * x.relu())
