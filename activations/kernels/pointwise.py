"""The one autograd function that runs every formula: it saves x and the coefficients and recomputes the rest."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from activations.kernels import paths
from activations.kernels.formula import Formula, working_dtype


class Pointwise:
    """x -> F(x), (..., channels) -> (..., channels), dtype kept: a formula with its coefficients.

    Coefficients: (k,) for the layer, or (rows, k) for equal blocks of channels; 0-dim ones are constants. Called, it is
    differentiable once in x and the coefficients, and raises ValueError where the rows do not divide the channels.
    """

    def __init__(self, formula: Formula, *coefficients: Tensor) -> None:
        self.formula, self.coefficients = formula, coefficients

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            y: Tensor = _Differentiable.apply(self.formula, x, *self.coefficients)
            return y
        # Nothing to save. Dynamo (2.13), tracing an autograd function without gradients, hands `forward` its arguments one
        # place off: the model then ran in pieces, which train.py's fullgraph=True would now refuse.
        return _evaluate(self.formula, x, *_prepare(self.formula, x, self.coefficients))

    def frozen(self) -> Callable[[Tensor], Tensor]:
        """The same at the coefficients' present values, without gradients; what is prepared of them is kept between calls."""
        coefficients = [c.detach().clone() for c in self.coefficients]
        kept: dict[torch.dtype, tuple[int, paths.Columns]] = {}

        @torch.no_grad()
        def function(x: Tensor) -> Tensor:
            if working_dtype(x) not in kept:
                kept[working_dtype(x)] = _prepare(self.formula, x, coefficients)
            return _evaluate(self.formula, x, *kept[working_dtype(x)])

        return function


def _prepare(formula: Formula, x: Tensor, coefficients: Sequence[Tensor]) -> tuple[int, paths.Columns]:
    """Rows of coefficients, and what the formula makes of them."""
    table = _table(x, coefficients)
    return len(table[0]), _columns(formula.prepare(*table))


def _evaluate(formula: Formula, x: Tensor, rows: int, columns: paths.Columns) -> Tensor:
    return paths.value(formula, _blocks(x, rows), columns).view(x.shape)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(formula: Formula, x: Tensor, *coefficients: Tensor) -> Tensor:
        return _evaluate(formula, x, *_prepare(formula, x, coefficients))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.formula = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, *coefficients = ctx.saved_tensors
        table = _table(x, coefficients)
        rows, learned = len(table[0]), any(ctx.needs_input_grad[2:])
        prepared = _columns(ctx.formula.prepare(*table))
        dx, sums = paths.gradients(ctx.formula, _blocks(x, rows), _blocks(dy, rows), prepared, learned)
        collected = ctx.formula.collect(sums, *table) if learned else [None for _ in coefficients]
        return (
            None,
            dx.view(x.shape),
            *[None if d is None else _like(d, c) for d, c in zip(collected, coefficients, strict=True)],
        )


def _blocks(x: Tensor, rows: int) -> Tensor:
    """x as contiguous (n, rows, width)."""
    channels = x.shape[-1] if x.ndim else 1
    return x.contiguous().view(math.prod(x.shape[:-1]), rows, channels // rows)


def _table(x: Tensor, coefficients: Sequence[Tensor]) -> list[Tensor]:
    """The coefficient tensors as (rows, k), rows the largest that any of them has, in the working dtype."""
    rows = max(c.shape[0] if c.ndim == 2 else 1 for c in coefficients)
    channels = x.shape[-1] if x.ndim else 1
    if channels % rows:
        raise ValueError(
            f"{rows} rows of coefficients cannot serve {channels} channels; give a number of rows that divides the channels"
        )
    dtype = working_dtype(x)
    return [c.to(dtype).reshape(-1, c.shape[-1] if c.ndim else 1).expand(rows, -1) for c in coefficients]


def _columns(prepared: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Tensors (rows, m) as m columns each: 0-dim for one row, contiguous (rows, 1) otherwise."""
    # Inductor would compute these small tensors anew at every element: the tropical backward was 3x slower.
    transposed = [paths.realized(t.t().contiguous()) for t in prepared]
    return [t.view(-1).unbind() if t.shape[1] == 1 else t.unsqueeze(-1).unbind() for t in transposed]


def _like(gradient: Tensor, c: Tensor) -> Tensor:
    """A gradient (rows, k) in the shape and dtype of c, summed over rows where c has a single one for all."""
    rows = c.shape[0] if c.ndim == 2 else 1
    if rows < len(gradient):
        gradient = gradient.sum(0, keepdim=True)
    return gradient.reshape(c.shape).to(c.dtype)
