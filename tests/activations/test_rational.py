"""Rational: where the exact gain exists, its kinks, its groups."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import activations
from activations.activation import Learnable
from activations.engine import Pointwise
from activations.rational import KERNEL


@pytest.mark.parametrize(("p", "q", "exact"), [(5, 4, True), (4, 5, True), (2, 2, True), (2, 4, False), (1, 2, False)])
def test_exact_gain_where_the_numerator_is_long_enough(p: int, q: int, exact: bool) -> None:
    module = activations.build(f"rational:p={p},q={q}", 8)
    assert isinstance(module, Learnable)
    assert module.has_free_constant is exact
    second, slope = activations.gains(module)
    assert second == pytest.approx(1, rel=1e-6)
    assert (slope == pytest.approx(1, rel=1e-6)) is exact


def test_kinks_are_the_real_zeros() -> None:
    module = activations.build("rational:q=3,groups=1", 8)
    assert isinstance(module, Learnable)
    q = torch.tensor([[-2.0, 1.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)  # x (x - 1) (x + 2), x (x^2 + 1)
    kinks = module.kinks({"denominator": q}).sort(dim=-1).values
    assert kinks[0].tolist() == pytest.approx([-2, 0, 1])
    assert kinks[1].tolist() == [0, torch.inf, torch.inf]


def test_moments_with_a_sign_change_agree_with_samples() -> None:
    module = activations.build("rational:groups=1", 1)
    activations.fit(module, F.gelu)
    x = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert activations.gains(module)[0] == pytest.approx(float(module.reference(x).square().mean()), rel=0.02)


def test_paper_is_silu() -> None:
    x = torch.linspace(-3, 3, 41)[:, None].expand(-1, 8)
    assert (activations.build("rational:init=paper", 8)(x) - F.silu(x)).abs().max() < 0.01


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match=r"groups=8 do not divide 12 channels; type for example groups=6"):
        activations.build("rational", 12)
    assert activations.build("rational:groups=4", 12).values()["numerator"].shape == (4, 6)
    assert activations.build("rational:per=channel", 12).values()["numerator"].shape == (12, 6)


@given(st.floats(-50, 50, width=32), st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4))
@settings(deadline=None)
def test_never_exceeds_its_numerator(x, q):
    p = torch.tensor([0.3, -1.0, 0.5])
    numerator = abs(0.3 - x + 0.5 * x * x)
    assert abs(Pointwise(KERNEL, p, torch.tensor(q))(torch.tensor([x])).item()) <= numerator * (1 + 1e-4) + 1e-5


def test_golden():
    y = Pointwise(KERNEL, torch.tensor([1.0, 1.0]), torch.tensor([0.0, -0.5]))(torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(y, torch.tensor([3 / 3, 0.0]))


def test_large_inputs_keep_the_value_at_the_clamp():
    y = Pointwise(KERNEL, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0]))(torch.tensor([1e20, 3e38, -3e38]))
    torch.testing.assert_close(y, torch.ones(3))
