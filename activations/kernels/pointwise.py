"""The one autograd function that runs every formula: it saves x and the coefficients and recomputes the rest.

The kernel is an optimisation of the first derivative. Whoever asks for more gets the family's plain formula, by two explicit
checks: `only_plain` before the forward pass, and in the backward pass whether gradients are being recorded.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from activations.kernels import paths
from activations.kernels.formula import Formula, working_dtype

# torch 2.6 has no public name that tells export from compilation: there both get the plain formula, which saves more tensors.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def only_plain(*tensors: Tensor) -> bool:
    """Whether only plain operators will do: in torch.func's transforms, in forward-mode AD, in torch.export and jit.trace.

    Compiled code too: a transform inside torch.compile may be one of several, and so ask for second derivatives.
    """
    if torch.compiler.is_compiling():
        return is_exporting() or _transforms()
    if torch._C._get_tracing_state() is not None:
        return True
    if _transforms() or any(map(torch._C._functorch.is_legacy_batchedtensor, tensors)):
        return True
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


@torch.compiler.assume_constant_result
def _transforms() -> bool:
    """Whether a transform of torch.func is at work; PyTorch asks itself so, and has no public name for it.

    A constant to Dynamo, which enters the transforms that it traces: the call would be a node that no cache of graphs takes.
    """
    return torch._C._are_functorch_transforms_active()


class Pointwise:
    """x -> F(x), (..., channels) -> (..., channels), dtype kept: a formula with its coefficients.

    Coefficients: (k,) for the layer, or (rows, k) for equal blocks of channels; 0-dim ones are constants. Called, it raises
    ValueError where the rows do not divide the channels.
    """

    def __init__(self, formula: Formula, *coefficients: Tensor) -> None:
        self.formula, self.coefficients = formula, coefficients

    def __call__(self, x: Tensor, plain: Callable[..., Tensor] | None = None, *origins: Tensor) -> Tensor:
        """F(x), differentiable in x and the coefficients; as often as plain(x, *origins) is, where that is given.

        plain is the same function by operators that autograd differentiates, of the tensors that the coefficients come from.
        """
        if torch.is_grad_enabled():
            if torch.compiler.is_compiling():  # AOTAutograd refuses second derivatives itself
                plain, origins = None, ()
            y: Tensor = _Differentiable.apply(self.formula, plain, len(self.coefficients), x, *self.coefficients, *origins)
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
    # Not `view`: autograd forbids to change in place what a custom function returns as a view, as dropout may.
    y: Tensor = torch.ops.aten._unsafe_view(paths.value(formula, _blocks(x, rows), columns), x.shape)
    return y


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(formula: Formula, plain: Callable[..., Tensor] | None, count: int, x: Tensor, *tensors: Tensor) -> Tensor:
        return _evaluate(formula, x, *_prepare(formula, x, tensors[:count]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.formula, ctx.plain, ctx.count = inputs[:3]
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        coefficients, origins = tensors[: ctx.count], tensors[ctx.count :]
        if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or only_plain(dy)):
            if ctx.plain is None:
                raise RuntimeError("a kernel is differentiable once; call it with `plain` and what its coefficients come from")
            needed = [ctx.needs_input_grad[3], *ctx.needs_input_grad[4 + ctx.count :]]
            dx, *gradients = _recorded(ctx.plain, [x, *origins], needed, dy)
            return (None, None, None, dx, *[None for _ in coefficients], *gradients)
        table = _table(x, coefficients)
        rows, learned = len(table[0]), any(ctx.needs_input_grad[4 : 4 + ctx.count])
        prepared = _columns(ctx.formula.prepare(*table))
        dx, sums = paths.gradients(ctx.formula, _blocks(x, rows), _blocks(dy, rows), prepared, learned)
        collected = ctx.formula.collect(sums, *table) if learned else [None for _ in coefficients]
        return (
            *(None, None, None, dx.view(x.shape)),
            *[None if d is None else _like(d, c) for d, c in zip(collected, coefficients, strict=True)],
            *[None for _ in origins],
        )


def _recorded(
    plain: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], dy: Tensor
) -> list[Tensor | None]:
    """The gradients of plain(*inputs) by those inputs that need one, themselves differentiable where gradients are recorded.

    They bypass the coefficients, which are functions of the inputs.
    """
    record = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that nothing between the inputs, should one depend on another, is followed.
        views = [t.view_as(t) if need else t for t, need in zip(inputs, needed, strict=True)]
        wanted = [view for view, need in zip(views, needed, strict=True) if need]
        found = iter(torch.autograd.grad(plain(*views), wanted, dy, create_graph=record, allow_unused=True))
        gradients = [next(found) if need else None for need in needed]
        if record and gradients[0] is not None:
            # dx of piecewise linear functions holds no x: this ties them, with a derivative of zero as often as nn.ReLU's is.
            gradients[0] = torch.where(torch.ones_like(gradients[0], dtype=torch.bool), gradients[0], torch.relu(views[0]))
    return gradients


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
    transposed = [_in_memory(t.t()) for t in prepared]
    return [t.view(-1).unbind() if t.shape[1] == 1 else t.unsqueeze(-1).unbind() for t in transposed]


def _in_memory(t: Tensor) -> Tensor:
    """t (k, rows), contiguous; of several rows, under a compiler, computed before the loop over the inputs.

    Inductor would write what makes a coefficient into that loop, for every element: TPGU 5, a power each, took the step of
    6 x 384 to 1.42 of GELU's time. It keeps the result of a sum, unless that has eight terms or fewer: here eight are zero.
    """
    if not torch.compiler.is_compiling() or t.shape[1] == 1:
        return t.contiguous()
    first = torch.arange(9, device=t.device).view(-1, 1) == 0
    return torch.where(first, t.unsqueeze(1), 0.0).sum(1)


def _like(gradient: Tensor, c: Tensor) -> Tensor:
    """A gradient (rows, k) in the shape and dtype of c, summed over rows where c has a single one for all."""
    rows = c.shape[0] if c.ndim == 2 else 1
    if rows < len(gradient):
        gradient = gradient.sum(0, keepdim=True)
    return gradient.reshape(c.shape).to(c.dtype)
