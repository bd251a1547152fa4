"""The one autograd function that runs every formula: it saves x and the coefficients and recomputes the rest."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from activations.kernels import paths
from activations.kernels.formula import Formula, working_dtype


def pointwise(formula: Formula, x: Tensor, *coefficients: Tensor) -> Tensor:
    """F(x), differentiable once in x and the coefficients, in x's shape and dtype.

    x: (..., channels); coefficients: (k,) for the layer, or (rows, k) for equal blocks of channels; 0-dim ones are constants.
    Raises ValueError when the rows do not divide the channels.
    """
    if not torch.is_grad_enabled():
        # Nothing to save. Dynamo (2.13), tracing an autograd function without gradients, hands `forward` its arguments one
        # place off: the model then ran in pieces, which train.py's fullgraph=True would now refuse.
        return evaluate(formula, x, *coefficients)
    y: Tensor = _Pointwise.apply(formula, x, *coefficients)
    return y


def evaluate(formula: Formula, x: Tensor, *coefficients: Tensor) -> Tensor:
    """F(x) without a gradient."""
    table = _table(x, coefficients)
    return paths.value(formula, _blocks(x, len(table[0])), _columns(formula.prepare(*table))).view(x.shape)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(formula: Formula, x: Tensor, *coefficients: Tensor) -> Tensor:
        return evaluate(formula, x, *coefficients)

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
