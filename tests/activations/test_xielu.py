"""xIELU: the published formula, bounds of its slopes, documented numbers."""

import pytest
import torch
import torch.nn.functional as F

import activations
from activations.engine import Pointwise
from activations.xielu import KERNEL, XIELU


def test_paper_is_the_published_formula() -> None:
    x = torch.linspace(-6, 6, 121)[:, None]
    expected = torch.where(x > 0, 0.8 * x * x + 0.5 * x, 0.8 * (torch.expm1(x.clamp(max=-1e-6)) - x) + 0.5 * x)
    torch.testing.assert_close(activations.build("xielu:init=paper", 1)(x), expected, rtol=1e-5, atol=2e-6)


def test_initial_gain() -> None:
    second, slope = activations.gains(activations.build("xielu", 4, 0.3))
    assert second == pytest.approx(0.09, rel=1e-6)
    assert slope == pytest.approx(1.159, abs=1e-3)
    assert "1.159" in (XIELU.__doc__ or "")


def test_fits_keep_the_slopes_in_bounds() -> None:
    module = activations.build("xielu", 4)
    activations.fit(module, lambda x: -x)
    values = module.values()
    assert all(float(F.softplus(value).min()) >= 0.99e-3 for value in values.values())
    module(torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_documented_overflow_in_float16() -> None:
    module = activations.build("xielu", 1)
    x = torch.arange(300, 400, dtype=torch.float16)[:, None]
    last = float(x[module(x).isfinite()].max())
    assert f"x/s = {last:.0f}" in (XIELU.__doc__ or "")


ALPHA_P, ALPHA_N, BETA, STD = torch.tensor([0.8]), torch.tensor([1.3]), torch.tensor([0.5]), torch.tensor(2.0)


def test_golden_values():
    y = Pointwise(KERNEL, ALPHA_P.double(), ALPHA_N.double(), BETA.double(), STD.double())(torch.tensor([3.0, -2.0]).double())
    tail = 2 * (1.3 * (torch.expm1(torch.tensor(-1.0).double()) + 1) - 0.5)
    torch.testing.assert_close(y, torch.stack([torch.tensor(0.8 * 9 / 2 + 1.5).double(), tail]))


def test_value_and_slope_are_continuous_at_zero():
    x = torch.tensor([-1e-7, 0.0, 1e-7], dtype=torch.float64, requires_grad=True)
    y = Pointwise(KERNEL, ALPHA_P, ALPHA_N, BETA, STD)(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5), rtol=0, atol=1e-6)
    assert y[1] == 0
