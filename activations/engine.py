"""Runs a family's kernel fast: once differentiable, in x and the coefficients.

The formula itself is `evaluate` of the family. A kernel is an optimisation of its first derivative, in four functions
(`Kernel`). This file decides how a kernel runs. The choice changes the speed, not the values. Names in brackets are the
tests that guard a trick, in tests/activations/test_engine.py where no file is named. Times are ratios, with over without.

1. x and the coefficients alone are saved for the backward pass, which computes all else again. The memory is GELU's: 1.00
   (bench.activations). [test_saves_x_and_the_coefficients_and_a_few_constants]
2. Eager code on a CPU makes a pass over memory for every operator. So x goes through a kernel in blocks of BLOCK elements,
   which stay in the cache. Constants beside the code hold its times. [test_blocks_give_the_values_of_one_block]
3. A 16-bit number has 65,536 values. For many inputs the kernel runs once on all of them, and x looks its values up.
   The gradients weight each value by the sum of the dy that fell on it. [test_tables_give_the_values_of_blocks]
4. A buffer `out` of the block's size takes the result, and one buffer widens 16-bit blocks. [test_does_not_write_to_its_inputs]
5. A compiler fuses a kernel into one loop, so there it runs whole. [test_compiled.py]
6. Under a compiler, coefficient gradients are sums of products (`_product`); up to FUSED_SUMS of them share the loop of dx, and
   columns are first summed over tiles of TILE positions. [test_compiled.py]
7. Under a compiler, coefficients by channel are made before the loop over x (`_in_memory`). TPGU 5 without it: the step of
   6 x 384 takes 1.42 of GELU's time. [test_coefficients_by_channel_are_made_before_the_loop_over_the_inputs]
8. What depends on the coefficients alone (`prepare`) is computed once a call, and kept between calls of `frozen`.
   [test_family.py::test_frozen_is_the_same_function]

`python -m bench.tricks` measures 2, 3 and 6 and what the families do beside them, each switched off in turn.
Second derivatives, torch.func and torch.export get the plain formula, by two explicit checks: `only_plain` before the forward
pass, and in the backward pass whether gradients are being recorded.

Shapes: x is (..., channels), of any layout. A coefficient tensor is (k,) for the whole layer, or (rows, k): row r serves the
r-th of `rows` equal runs of channels. Kernels see x as (n, rows, width): n positions, `width` channels that share a row.
They compute in float32 (float64 if x is float64) and round once to x.dtype.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

log = logging.getLogger(__name__)

# Elements. Starting the threads of an operator costs some 15 us, as much as 200,000 elements of it. Four buffers of twice this
# leave a third-level cache of 32 MiB. Zen 3, of GELU's time at 2^18, 2^19, 2^20: Hermite 3 0.90, 0.84, 0.86 at 4 x 256 x 1536
# and 0.72, 0.62, 0.70 at 8 x 1024 x 3072; tropical 6 1.82, 1.64, 2.02 and 1.49, 1.25, 1.52. Fourier 5 loses 3 to 6 % at 2^19;
# rational, xIELU and tropical rational lose 9 to 15 % at the small shape in float32.
BLOCK = 1 << 19
# Each sum that Inductor fuses with dx costs the loop a cascade of accumulators. Sums by row it does not fuse.
FUSED_SUMS = 8
# Positions that are summed before the next are read; a power of 2. Inductor sums columns strip by strip, a cache line of every
# position: a tile's lines stay in the cache and its pages in the TLB. 8192 x 3072, float32, seven sums: 16 -> 10 ms.
TILE = 128
PATTERNS = 1 << 16
# Table against blocks: 1.2 to 1.4 of their time at half of this, 0.5 to 0.75 at this (Fourier, tropical, Hermite 8, xIELU).
TABLE_PAYS_FROM = 4 * PATTERNS

# torch 2.6 has no public name that tells export from compilation: there both get the plain formula, which saves more tensors.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class Total(Protocol):
    """Sum of u, or of u v, over the elements that share a row of coefficients: 0-dim for one row, (rows, 1) otherwise."""

    def __call__(self, u: Tensor, v: Tensor | None = None) -> Tensor: ...


Columns = Sequence[Tensor]  # the m columns of a tensor (rows, m), each to broadcast with blocks: 0-dim (one row) or (rows, 1)


@dataclass(frozen=True)
class Kernel:
    """A family's function and its gradients by blocks. Coefficients come as (rows, k) in the working dtype.

    `out` is None or a buffer of z's shape and dtype that the result may be built in and returned as; z and g stay untouched.
    """

    prepare: Callable[..., tuple[Tensor, ...]]
    """(*coefficients) -> tensors (rows, m), made once a call; `value` and `gradients` get the columns of each."""
    value: Callable[..., Tensor]
    """(z, out, *prepared) -> F(z)."""
    gradients: Callable[..., tuple[Tensor, Sequence[Tensor]]]
    """(z, g, total: Total, out, *prepared) -> (g F'(z), sums), each sum a `total`."""
    collect: Callable[..., tuple[Tensor | None, ...]]
    """(sums (rows, number of sums), *coefficients) -> a gradient (rows, k) for each coefficient tensor, None for constants."""
    tabulated: bool = True
    """Dear enough op by op that 16-bit inputs on a CPU are better served from a table of all their values."""


def working_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


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


def _transforms() -> bool:
    """Whether a transform of torch.func is at work; PyTorch asks itself so, and has no public name for it."""
    return torch._C._are_functorch_transforms_active()


# A constant to Dynamo, which enters the transforms that it traces: the call would be a node that no cache of graphs takes.
# It is what torch.compiler.assume_constant_result sets, which would import Dynamo with this package. [test_transforms.py:
# test_derivatives_inside_compiled_code; test_package.py: test_it_works_and_imports_nothing_but_torch_s_own]
_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]


def may_look(z: Tensor) -> bool:
    """Whether code may choose by the numbers in z: where they are at hand, on a CPU, and no compiler or tracer follows."""
    if torch.compiler.is_compiling() or z.device.type != "cpu":
        return False
    return type(z) is Tensor and not torch._C._len_torch_dispatch_stack()  # FakeTensorMode, make_fx; no public name for it


class Pointwise:
    """x -> F(x), (..., channels) -> (..., channels), dtype kept: a kernel with its coefficients.

    Coefficients: (k,) for the layer, or (rows, k); 0-dim ones are constants. Called, it raises ValueError where the rows do
    not divide the channels.
    """

    def __init__(self, kernel: Kernel, *coefficients: Tensor) -> None:
        self.kernel, self.coefficients = kernel, coefficients

    def __call__(self, x: Tensor, plain: Callable[..., Tensor] | None = None, *origins: Tensor) -> Tensor:
        """F(x), differentiable in x and the coefficients; as often as plain(x, *origins) is, where that is given.

        plain is the same function by operators that autograd differentiates, of the tensors that the coefficients come from.
        """
        if torch.is_grad_enabled():
            if torch.compiler.is_compiling():  # AOTAutograd refuses second derivatives itself
                plain, origins = None, ()
            y: Tensor = _Differentiable.apply(self.kernel, plain, len(self.coefficients), x, *self.coefficients, *origins)
            return y
        # Nothing to save. Dynamo (2.13), tracing an autograd function without gradients, hands `forward` its arguments one
        # place off: the model then ran in pieces, which train.py's fullgraph=True would now refuse.
        return _evaluate(self.kernel, x, *_prepare(self.kernel, x, self.coefficients))

    def frozen(self) -> Callable[[Tensor], Tensor]:
        """The same at the coefficients' present values, without gradients; what is prepared of them is kept between calls."""
        coefficients = [c.detach().clone() for c in self.coefficients]
        kept: dict[torch.dtype, tuple[int, list[Columns]]] = {}

        @torch.no_grad()
        def function(x: Tensor) -> Tensor:
            if working_dtype(x) not in kept:
                kept[working_dtype(x)] = _prepare(self.kernel, x, coefficients)
            return _evaluate(self.kernel, x, *kept[working_dtype(x)])

        return function


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(kernel: Kernel, plain: Callable[..., Tensor] | None, count: int, x: Tensor, *tensors: Tensor) -> Tensor:
        return _evaluate(kernel, x, *_prepare(kernel, x, tensors[:count]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernel, ctx.plain, ctx.count = inputs[:3]
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
        prepared = _columns(ctx.kernel.prepare(*table))
        dx, sums = _gradients(ctx.kernel, _blocks(x, rows), _blocks(dy, rows), prepared, learned)
        collected = ctx.kernel.collect(sums, *table) if learned else [None for _ in coefficients]
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


# Coefficients and inputs in the shapes that kernels take.


def _prepare(kernel: Kernel, x: Tensor, coefficients: Sequence[Tensor]) -> tuple[int, list[Columns]]:
    """Rows of coefficients, and what the kernel makes of them."""
    table = _table(x, coefficients)
    return len(table[0]), _columns(kernel.prepare(*table))


def _evaluate(kernel: Kernel, x: Tensor, rows: int, prepared: Sequence[Columns]) -> Tensor:
    # Not `view`: autograd forbids to change in place what a custom function returns as a view, as dropout may.
    y: Tensor = torch.ops.aten._unsafe_view(_value(kernel, _blocks(x, rows), prepared), x.shape)
    return y


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


def _columns(prepared: Sequence[Tensor]) -> list[Columns]:
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


# Three ways to run a kernel: whole, in blocks, from a table.


def choose(kernel: Kernel, x: Tensor) -> str:
    """`whole` under a compiler or tracer and off the CPU, `table` for dear kernels of many 16-bit values, else `blocks`."""
    if not may_look(x):
        return "whole"
    path = "table" if kernel.tabulated and x.itemsize == 2 and x.shape[1] == 1 and x.numel() >= TABLE_PAYS_FROM else "blocks"
    _announce(path, x.dtype)
    return path


@cache
def _announce(path: str, dtype: torch.dtype) -> None:
    log.debug("activations of %s run eagerly on the CPU: %s", dtype, path)


def _value(kernel: Kernel, x: Tensor, prepared: Sequence[Columns]) -> Tensor:
    """F(x) for contiguous x (n, rows, width), rounded once to x's dtype."""
    path = choose(kernel, x)
    if path == "whole":
        return kernel.value(x.to(working_dtype(x)), None, *prepared).to(x.dtype)
    if path == "table":
        entries = kernel.value(_all_patterns(x.dtype), None, *prepared).to(x.dtype)
        return entries.index_select(0, _pattern(x)).view(x.shape)
    y = torch.empty_like(x)
    widen, buffer = _widener(x), _widener(x)
    for x_block, y_block in zip(_split(x), _split(y), strict=True):
        result = kernel.value(widen(x_block), buffer(y_block, fill=False), *prepared)
        if result is not y_block:
            y_block.copy_(result)
    return y


def _gradients(kernel: Kernel, x: Tensor, dy: Tensor, prepared: Sequence[Columns], learned: bool) -> tuple[Tensor, Tensor]:
    """(dy F'(x) in x's dtype, the sums (rows, number of sums)) for contiguous x and dy; the sums are void unless `learned`."""
    path = choose(kernel, x)
    if path == "whole":
        z = x.to(working_dtype(x))
        dz, products = kernel.gradients(z, dy.to(working_dtype(x)), _product, None, *prepared)
        fused = x.device.type == "cpu" and x.shape[1] == 1 and len(products) <= FUSED_SUMS
        return dz.to(x.dtype), _gather([p.sum() if fused else _row_sums(p) for p in products], len(products))
    total = _no_total if not learned else _dot if x.shape[1] == 1 else _row_total
    if path == "table":
        return _from_table(kernel, x, dy, prepared, total)
    dx = torch.empty_like(x)
    parts: list[Tensor] = []
    widen, widen_dy, buffer = _widener(x), _widener(x), _widener(x)
    for x_block, dy_block, dx_block in zip(_split(x), _split(dy), _split(dx), strict=True):
        result, sums = kernel.gradients(widen(x_block), widen_dy(dy_block), total, buffer(dx_block, fill=False), *prepared)
        if result is not dx_block:
            dx_block.copy_(result)
        parts.extend(sums)
    return dx, _gather(parts, len(sums))


def _from_table(kernel: Kernel, x: Tensor, dy: Tensor, prepared: Sequence[Columns], total: Total) -> tuple[Tensor, Tensor]:
    """All elements of one pattern have the same F'; its part of the sums is weighted by all dy that fell on it."""
    pattern = _pattern(x)
    z, dy_flat = _all_patterns(x.dtype), dy.view(-1).float()
    slopes, _ = kernel.gradients(z, torch.ones_like(z), _no_total, None, *prepared)
    dx = slopes.index_select(0, pattern).mul_(dy_flat).to(x.dtype)
    weights = torch.bincount(pattern, dy_flat, PATTERNS).float()
    # A pattern that x does not hold may be inf or NaN; it must not meet its weight of zero.
    _, sums = kernel.gradients(torch.where(weights == 0, 0, z), weights, total, None, *prepared)
    return dx.view(x.shape), _gather(sums, len(sums))


def _split(x: Tensor) -> tuple[Tensor, ...]:
    """Flat for one row of coefficients, else along n; at least one block, so that empty inputs take the same way."""
    if x.shape[1] == 1:
        return torch.split(x.view(-1), BLOCK)
    return torch.split(x, max(1, BLOCK // max(1, x.shape[1] * x.shape[2])))


def _widener(x: Tensor) -> Callable[..., Tensor]:
    """From a block to itself in the working dtype: the block if it has that already, else a buffer that all blocks share."""
    if x.dtype == working_dtype(x):
        return lambda block, fill=True: block
    buffer = torch.empty_like(_split(x)[0], dtype=working_dtype(x))

    def widened(block: Tensor, fill: bool = True) -> Tensor:
        part = buffer[: len(block)]
        return part.copy_(block) if fill else part

    return widened


def _pattern(x: Tensor) -> Tensor:
    """The 16 bits of every element as an index."""
    return x.view(-1).view(torch.uint16).to(torch.int32)


def _all_patterns(dtype: torch.dtype) -> Tensor:
    """Every value of a 16-bit dtype, in the order of its bits, as float32."""
    return torch.arange(PATTERNS, dtype=torch.int32).to(torch.uint16).view(dtype).float()


# Sums for the coefficients' gradients: `_product` and `_row_sums` where the kernel runs whole, the others on blocks.


def _gather(sums: Sequence[Tensor], count: int) -> Tensor:
    """`count` sums a block, one block after the other, each 0-dim or (rows, 1): added up as (rows, count)."""
    stacked = torch.stack(list(sums))
    return stacked.view(-1, count, stacked[0].numel()).sum(0).t()


def _product(u: Tensor, v: Tensor | None = None) -> Tensor:
    """What is to be summed later, by plain reductions: a dot product in the loop that Inductor makes of it cost 5x."""
    return u.clone() if v is None else u * v


def _row_sums(product: Tensor) -> Tensor:
    """(n, rows, width) summed to (rows, 1); columns on a CPU first over tiles of n (TILE)."""
    n, rows, width = product.shape
    if width > 1 or product.device.type != "cpu" or n % TILE:  # a compiler may know n as a symbol: two cases, two graphs
        return product.sum(-1, keepdim=True).sum(0)
    return product.view(n // TILE, TILE, rows, 1).sum(1).sum(0)


def _dot(u: Tensor, v: Tensor | None = None) -> Tensor:
    """For flat blocks: no temporary for the product."""
    return u.sum() if v is None else torch.dot(u, v)


def _row_total(u: Tensor, v: Tensor | None = None) -> Tensor:
    return (u if v is None else u * v).sum((0, 2)).unsqueeze(-1)


def _no_total(u: Tensor, v: Tensor | None = None) -> Tensor:
    return u.new_zeros(())
