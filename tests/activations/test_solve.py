"""Least squares: linear, sign-constrained, nonlinear, one-dimensional."""

import pytest
import scipy.optimize
import torch

from activations import solve
from activations.target import Target, Weight


def test_linear_recovers_a_member_of_the_basis() -> None:
    target = Target.sample(lambda x: 2 * x**3 - 1, Weight("uniform", 2.0))
    z = target.z[:, None]
    c = solve.linear(target, torch.cat([z**0, z, z**3], dim=1), torch.cat([0 * z, z**0, 3 * z**2], dim=1))
    assert c.tolist() == pytest.approx([-1, 0, 2], abs=1e-12)


def test_signed_least_squares_agrees_with_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        matrix, right = torch.randn(30, 8, generator=generator).double(), torch.randn(30, generator=generator).double()
        signs = torch.tensor([0, 1, 1, 1, -1, -1, -1, 0]).double()
        c = solve.signed_lstsq(matrix, right, signs)
        lower = [{0: -float("inf"), 1: 0, -1: -float("inf")}[int(sign)] for sign in signs]
        upper = [{0: float("inf"), 1: float("inf"), -1: 0}[int(sign)] for sign in signs]
        best = scipy.optimize.lsq_linear(matrix.numpy(), right.numpy(), (lower, upper), tol=1e-14)
        assert float((matrix @ c - right).square().sum()) == pytest.approx(2 * best.cost, rel=1e-9)
        assert (c * signs >= 0).all()


def test_levenberg_marquardt_finds_an_exponential() -> None:
    t = torch.linspace(0, 2, 50, dtype=torch.float64)
    data = 1.5 * torch.exp(-0.8 * t) + 0.2
    theta = solve.levenberg_marquardt(
        lambda p: p[0] * torch.exp(-p[1] * t) + p[2] - data, torch.tensor([1.0, 0.1, 0.0], dtype=torch.float64)
    )
    assert theta.tolist() == pytest.approx([1.5, 0.8, 0.2], rel=1e-5)


def test_golden_section_finds_the_lowest_valley() -> None:
    assert solve.golden_section(lambda w: (w - 0.37) ** 2, 0.1, 2.0, evaluations=40) == pytest.approx(0.37, abs=1e-4)
