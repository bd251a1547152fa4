"""The spline as an interpolation that NumPy makes too, its lines outside, and its fits."""

import numpy
import pytest
import torch
from torch import Tensor

import activations
from activations import registry
from activations.activation import Learnable
from activations.moments import piecewise_linear
from activations.spline import REACH
from activations.target import gelu


def built(spec: str, channels: int = 1, std: float = 1.0) -> Learnable:
    module = activations.build(spec, channels, std)
    assert isinstance(module, Learnable)
    return module


@pytest.mark.parametrize("knots", [2, 3, 12, 32])
def test_it_is_linear_interpolation_with_lines_outside(knots: int) -> None:
    s = 0.75
    module = built(f"spline:knots={knots}", 1, s).double()
    generator = torch.Generator().manual_seed(knots)
    heights, slopes = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (knots, 2))
    module.set_values({"heights": heights, "slopes": slopes})
    t = numpy.linspace(-REACH, REACH, knots)
    z = numpy.concatenate([numpy.linspace(-9, 9, 997), t])
    wanted = numpy.interp(z, t, heights.numpy())
    wanted += float(slopes[0]) * numpy.minimum(z + REACH, 0) + float(slopes[1]) * numpy.maximum(z - REACH, 0)
    x = s * torch.from_numpy(z)[:, None]
    torch.testing.assert_close(module(x).detach()[:, 0], s * torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module.reference(x)[:, 0], s * torch.from_numpy(wanted), rtol=1e-12, atol=1e-12)


def test_at_a_knot_the_slope_is_that_of_the_piece_on_the_left() -> None:
    """By the kernel and by the plain formula; five knots at -2.5, -1.25, 0 are exact in w."""
    module = built("spline:knots=5").double()
    module.set_values({"heights": torch.tensor([0.0, 1, 3, 6, 10]), "slopes": torch.tensor([-1.0, 7.0])})
    knots = torch.linspace(-REACH, REACH, 5, dtype=torch.float64)[:, None]
    wanted = torch.tensor([-1.0, 0.8, 1.6, 2.4, 3.2], dtype=torch.float64)
    for function in (module, module.reference):
        x = knots.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(x).sum(), x)
        torch.testing.assert_close(slope[:, 0], wanted)


def test_starts_at_the_nearest_to_gelu_at_unit_gain() -> None:
    """GELU under N(0, 1) has E f'^2 = 0.456; scaled to 1 it is what a spline with many knots starts as."""
    module = built("spline:knots=32").double()
    z = torch.linspace(-2, 2, 101, dtype=torch.float64)
    shape = module(z[:, None])[:, 0].detach()
    line = torch.stack([gelu(z), torch.ones_like(z)], dim=1)
    scale, shift = torch.linalg.lstsq(line, shape[:, None]).solution[:, 0].tolist()
    assert scale == pytest.approx(0.456**-0.5, rel=5e-3)
    assert (shape - scale * gelu(z) - shift).abs().max() < 5e-3


@pytest.mark.parametrize(("knots", "largest"), [(5, 0.09), (12, 0.015), (32, 0.006)])
def test_more_knots_fit_better(knots: int, largest: float) -> None:
    assert activations.fit(built(f"spline:knots={knots}"), gelu).value_max < largest


@pytest.mark.parametrize("function", [torch.relu, torch.abs, lambda x: 0.3 * x - 1])
def test_a_shape_that_it_holds_is_found(function: object) -> None:
    """Kinks at a knot: nine knots have one at 0. Narrow inputs too, where far pieces are reached by none."""
    assert callable(function)
    for std in (None, 1.0):
        assert activations.fit(built("spline:knots=9"), function, std).value_max < 1e-3


def test_pieces_that_no_input_reaches_continue_the_line() -> None:
    module = built("spline:knots=12", 1, 1.0)
    activations.fit(module, gelu, std=0.05)
    bends = module.heights.diff().diff().abs()
    assert bends.max() < 0.2
    assert bends[[0, 1, -2, -1]].max() < 1e-3


def test_moments_of_a_spline_by_channel() -> None:
    """Against `piecewise_linear` of a search for the piece, another way to the same lines."""
    module = built("spline:knots=6,per=channel", 3)
    generator = torch.Generator().manual_seed(0)
    v, m = (torch.randn(3, n, generator=generator, dtype=torch.float64) for n in (6, 2))
    t = torch.linspace(-REACH, REACH, 6, dtype=torch.float64)

    def line(z: Tensor) -> tuple[Tensor, Tensor]:
        values = {"heights": v, "slopes": m}
        at = [module.evaluate(values, z[:, i : i + 1]) for i in range(z.shape[1])]
        next_to = [module.evaluate(values, z[:, i : i + 1] + 1e-3) for i in range(z.shape[1])]
        pick = [torch.stack(list(of), dim=0).diagonal(dim1=1, dim2=2).T for of in (at, next_to)]
        slope = (pick[1] - pick[0]) / 1e-3
        return slope, pick[0] - slope * z

    expected = piecewise_linear(t.expand(3, 6), line, 0.8)
    found = module.moments({"heights": v, "slopes": m}, 0.8)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_no_paper_publishes_an_initialisation() -> None:
    with pytest.raises(ValueError, match=r"init='paper' is not allowed; .*allowed: unit, fit-gelu, fit-silu, fit-relu"):
        registry.check("spline:init=paper")
