"""Thresholds, ties and pieces that are never the largest."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations.kernels.tropical import thresholds, tropical, tropical_rational

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
    dx, db = torch.autograd.grad(tropical(scale, intercepts)(x).sum(), [x, intercepts])
    assert dx.item() == 0
    assert db.tolist() == [1, 0, 0]


def test_a_piece_that_is_never_the_largest_gets_none():
    intercepts = torch.tensor([0.0, -5.0, 0.0], requires_grad=True)
    (db,) = torch.autograd.grad(tropical(torch.ones(1), intercepts)(torch.linspace(-3, 3, 1001)).sum(), intercepts)
    assert db[1] == 0
    assert db[0] > 0
    assert db[2] > 0


def test_one_piece_is_a_shifted_relu():
    x = torch.randn(100)
    torch.testing.assert_close(tropical(torch.tensor([1.5]), torch.tensor([0.0, 0.0]))(x), 1.5 * x.relu())


def test_rational_slopes_may_come_in_any_order():
    x = torch.randn(64, dtype=torch.float64, requires_grad=True)
    coefficients = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    order = torch.tensor([3, 0, 4, 1, 2])
    plain = torch.autograd.grad(tropical_rational(*coefficients)(x).sum(), [x, *coefficients])
    shuffled = torch.autograd.grad(tropical_rational(*[c[order] for c in coefficients])(x).sum(), [x, *coefficients])
    for own, other in zip(plain, shuffled, strict=True):
        torch.testing.assert_close(own, other)


def test_rational_is_never_nan():
    huge = torch.finfo(torch.float32).max
    x = torch.tensor([huge, -huge, 1e30, -1e30, 0.0])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        assert not tropical_rational(*[torch.randn(4, generator=generator) for _ in range(4)])(x).isnan().any()
