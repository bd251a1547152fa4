"""Horner's rule against exact values, and its limits."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from activations.polynomial import polynomial

coefficient = st.floats(-4, 4, width=32)


@given(st.lists(coefficient, min_size=1, max_size=17), st.floats(-3, 3, width=32))
def test_is_the_polynomial_to_float32_accuracy(c, x):
    terms = [c_j * x**j for j, c_j in enumerate(c)]
    y = polynomial(torch.tensor(c))(torch.tensor([x])).item()
    assert abs(y - sum(terms)) <= 2e-6 * sum(map(abs, terms)) + 1e-30


def test_golden():
    assert polynomial(torch.tensor([1.0, -2.0, 0.0, 3.0]))(torch.tensor([2.0, -1.0])).tolist() == [21.0, 0.0]


def test_saturates_with_the_sign_of_the_leading_term():
    y = polynomial(torch.tensor([0.0, 1.0, 1.0, -2.0]))(torch.tensor([1e30, -1e30]))
    assert y.tolist() == [-torch.inf, torch.inf]
