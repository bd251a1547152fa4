"""The compiled path's sine and cosine, the phase's limits."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations.kernels import fourier as module
from activations.kernels.fourier import fourier


def test_half_angle_polynomials_are_accurate_to_float32():
    theta = torch.linspace(-40, 40, 200001)
    s, c = module._half_angle(theta, torch.tensor(1.0), torch.tensor(0.0))
    allowed = 4e-7 + theta.abs().double() * 2**-23  # the phase itself is rounded
    assert ((1 - 2 * s * s - theta.double().cos()).abs() <= allowed).all()
    assert ((2 * s * c - theta.double().sin()).abs() <= allowed).all()


@given(st.floats(-(2.0**127), 2.0**127, width=32), st.floats(-100, 100, width=32), st.floats(-7, 7, width=32))
@settings(deadline=None)
def test_is_bounded_by_its_amplitudes_at_every_finite_input(x, w, phi):
    y = fourier(torch.tensor([0.5, 2.0]), torch.tensor([w]), torch.tensor([phi]))(torch.tensor([x]))
    assert abs(y.item() - 0.5) <= 2.0 * (1 + 1e-6)


def test_frequencies_need_not_be_multiples_of_one():
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    w, phi = torch.tensor([0.3, 2.9], dtype=torch.float64), torch.tensor([0.1, -2.0], dtype=torch.float64)
    y = fourier(torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64), w, phi)(x)
    torch.testing.assert_close(y, 1 + 0.5 * torch.cos(0.3 * x - 0.1) + 0.25 * torch.cos(2.9 * x + 2.0))
