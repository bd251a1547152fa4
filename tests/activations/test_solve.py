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


def test_variable_projection_finds_an_exponential() -> None:
    t = torch.linspace(0, 2, 50, dtype=torch.float64)
    data = 1.5 * torch.exp(-0.8 * t) + 0.2
    found = solve.variable_projection(
        lambda theta: torch.stack([torch.exp(-theta[0] * t), torch.ones_like(t)], dim=1), data, torch.tensor([0.1]).double()
    )
    assert [*found.theta.tolist(), *found.c.tolist()] == pytest.approx([0.8, 1.5, 0.2], rel=1e-5)


def test_the_best_of_several_starts_is_never_worse_than_plain_least_squares_at_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(-1, 1, 60, dtype=torch.float64)
    for _ in range(5):
        data = torch.randn(60, generator=generator).double()
        starts = [torch.rand(3, generator=generator).double() * 9 for _ in range(3)]

        def design(w: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.cos(t[:, None] * w), torch.sin(t[:, None] * w)], dim=1)

        found = solve.best_projection(design, data, starts)
        c = solve.scaled_lstsq(design(starts[0]), data)
        assert found.misfit <= float((design(starts[0]) @ c - data).square().sum())


def test_golden_section_finds_the_lowest_valley() -> None:
    assert solve.golden_section(lambda w: (w - 0.37) ** 2, 0.1, 2.0, evaluations=40) == pytest.approx(0.37, abs=1e-4)
