"""The kernels as cases: every test that asks for `case` runs for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from activations.kernels import fourier, hermite, polynomial, rational, tropical, xielu
from activations.kernels.pointwise import Pointwise
from activations.spline import linear_spline

STD = torch.tensor(0.7)
PLACE = torch.tensor([1.5, 0.8])  # four pieces from x = -1.875 to 3.125


@dataclass(frozen=True)
class Case:
    """A kernel, its reference, and the number of coefficients in each of its tensors."""

    function: Callable[..., Pointwise]
    reference: Callable[..., Tensor]
    counts: tuple[int, ...]

    def kernel(self, x: Tensor, *coefficients: Tensor) -> Tensor:
        return self.function(*coefficients)(x)

    def coefficients(self, rows: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = [(count,) if rows is None else (rows, count) for count in self.counts]
        return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def with_std(module: object) -> tuple[Callable[..., Pointwise], Callable[..., Tensor]]:
    """std comes last: bind it behind the coefficients."""
    name = module.__name__.rsplit(".", 1)[1]  # type: ignore[attr-defined]
    kernel, reference = getattr(module, name), module.reference  # type: ignore[attr-defined]
    return partial(lambda f, *c: f(*c, STD), kernel), partial(lambda f, x, *c: f(x, *c, STD.double()), reference)


def spline_reference(x: Tensor, base: Tensor, rises: Tensor, outer: Tensor) -> Tensor:
    """The height of the knot on the left of x, and the part of the next rise that x has gone."""
    w = x * PLACE[1].double() + PLACE[0].double()
    heights = torch.cat([base, base + rises.cumsum(-1)], dim=-1)
    slopes = torch.cat([outer[..., :1], rises, outer[..., 1:]], dim=-1)
    piece = (w.detach().ceil().long()).clamp(0, rises.shape[-1] + 1)
    knot = (piece - 1).clamp(min=0)
    height, slope = (t.expand(*x.shape, -1).gather(-1, i[..., None])[..., 0] for t, i in ((heights, knot), (slopes, piece)))
    return height + slope * (w - knot)


CASES = {
    "constant": Case(polynomial.polynomial, polynomial.reference, (1,)),
    "line": Case(polynomial.polynomial, polynomial.reference, (2,)),
    "polynomial": Case(polynomial.polynomial, polynomial.reference, (5,)),
    "hermite1": Case(*with_std(hermite), (2,)),
    "hermite3": Case(*with_std(hermite), (4,)),
    "hermite9": Case(*with_std(hermite), (10,)),
    "fourier": Case(fourier.fourier, fourier.reference, (4, 3, 3)),
    "tropical1": Case(tropical.tropical, tropical.reference, (1, 2)),
    "tropical": Case(tropical.tropical, tropical.reference, (1, 7)),
    "tropical_rational": Case(tropical.tropical_rational, tropical.rational_reference, (4, 4, 3, 3)),
    "rational": Case(rational.rational, rational.reference, (6, 4)),
    "xielu": Case(*with_std(xielu), (1, 1, 1)),
    "spline": Case(lambda *c: linear_spline(*c, PLACE), spline_reference, (1, 4, 2)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]
