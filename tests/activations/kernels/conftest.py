"""The kernels as cases: every test that asks for `case` runs for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from activations.kernels import fourier, hermite, polynomial, rational, tropical, xielu
from activations.kernels.pointwise import Pointwise

STD = torch.tensor(0.7)


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
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]
