"""The two halves meet smoothly and saturate."""

import torch

from activations.kernels.xielu import xielu

ALPHA_P, ALPHA_N, BETA, STD = torch.tensor([0.8]), torch.tensor([1.3]), torch.tensor([0.5]), torch.tensor(2.0)


def test_golden():
    y = xielu(ALPHA_P.double(), ALPHA_N.double(), BETA.double(), STD.double())(torch.tensor([3.0, -2.0]).double())
    tail = 2 * (1.3 * (torch.expm1(torch.tensor(-1.0).double()) + 1) - 0.5)
    torch.testing.assert_close(y, torch.stack([torch.tensor(0.8 * 9 / 2 + 1.5).double(), tail]))


def test_value_and_slope_are_continuous_at_zero():
    x = torch.tensor([-1e-7, 0.0, 1e-7], dtype=torch.float64, requires_grad=True)
    y = xielu(ALPHA_P, ALPHA_N, BETA, STD)(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, torch.full_like(slope, 0.5), rtol=0, atol=1e-6)
    assert y[1] == 0
