"""The denominator keeps its distance from zero; large inputs stay finite."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations.kernels.rational import rational


@given(st.floats(-50, 50, width=32), st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4))
@settings(deadline=None)
def test_never_exceeds_its_numerator(x, q):
    p = torch.tensor([0.3, -1.0, 0.5])
    numerator = abs(0.3 - x + 0.5 * x * x)
    assert abs(rational(p, torch.tensor(q))(torch.tensor([x])).item()) <= numerator * (1 + 1e-4) + 1e-5


def test_golden():
    y = rational(torch.tensor([1.0, 1.0]), torch.tensor([0.0, -0.5]))(torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(y, torch.tensor([3 / 3, 0.0]))


def test_large_inputs_keep_the_value_at_the_clamp():
    y = rational(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0]))(torch.tensor([1e20, 3e38, -3e38]))
    torch.testing.assert_close(y, torch.ones(3))
