"""Tropical rational: golden numbers, signs of its fits, and torchortho's values."""

import pytest
import torch
import torch.nn.functional as F

import activations
from activations.engine import Pointwise
from activations.tropical_rational import KERNEL

UNIT = {2: (1.358732, 0.079229), 4: (0.761387, -0.136528), 6: (0.529592, -0.247729)}


@pytest.mark.parametrize("degree", UNIT)
def test_initial_scale_and_shift(degree: int) -> None:
    scale, shift = UNIT[degree]
    values = activations.build(f"tropical_rational:degree={degree}", 1).values()
    assert float(values["slopes"][1]) == pytest.approx(scale, abs=1e-6)
    assert float(values["intercepts"][0]) == pytest.approx(shift, abs=1e-6)
    assert values["slopes_den"].tolist() == pytest.approx((values["slopes"] / 2).tolist())


def test_paper_is_drawn_from_the_standard_normal() -> None:
    module = activations.build("tropical_rational:init=paper,per=channel", 512)
    for value in module.values().values():
        assert float(value.mean()) == pytest.approx(0, abs=0.06)
        assert float(value.std()) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("std", [None, 0.5])
def test_fits_are_differences_of_convex_functions(std: float | None) -> None:
    """SiLU on [-3, 3] violates the signs of plain least squares; the slopes must rise all the same."""
    module = activations.build("tropical_rational", 1)
    activations.fit(module, F.silu, std)
    values = module.values()
    assert (values["slopes"].diff() >= -1e-6).all()
    assert (values["slopes_den"].diff() >= -1e-6).all()


def test_agrees_with_torchortho() -> None:
    torchortho = pytest.importorskip("torchortho", reason="the authors' library (GPL) is installed for tests only")
    peer, ours = torchortho.TropicalRationalActivation(4), activations.build("tropical_rational:degree=4", 1)
    theirs = (peer.powers_num, peer.coefficients_num, peer.powers_denom, peer.coefficients_denom)
    mine = (ours.slopes, ours.intercepts, ours.slopes_den, ours.intercepts_den)
    with torch.no_grad():
        for a, b in zip(mine, theirs, strict=True):
            b.copy_(a)
    results = []
    for module, parameters in ((ours, mine), (peer, theirs)):
        x = torch.linspace(-2, 2, 64).reshape(-1, 1).requires_grad_()
        y = module(x)
        (y * torch.cos(x.detach())).sum().backward()
        results.append((y.detach(), x.grad, *(parameter.grad for parameter in parameters)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_slopes_may_come_in_any_order():
    x = torch.randn(64, dtype=torch.float64, requires_grad=True)
    coefficients = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    order = torch.tensor([3, 0, 4, 1, 2])
    plain = torch.autograd.grad(Pointwise(KERNEL, *coefficients)(x).sum(), [x, *coefficients])
    shuffled = torch.autograd.grad(Pointwise(KERNEL, *[c[order] for c in coefficients])(x).sum(), [x, *coefficients])
    for own, other in zip(plain, shuffled, strict=True):
        torch.testing.assert_close(own, other)


def test_it_is_never_nan():
    huge = torch.finfo(torch.float32).max
    x = torch.tensor([huge, -huge, 1e30, -1e30, 0.0])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        assert not Pointwise(KERNEL, *[torch.randn(4, generator=generator) for _ in range(4)])(x).isnan().any()
