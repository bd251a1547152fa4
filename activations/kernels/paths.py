"""How a formula is run: whole, in cache-sized blocks, or from a table of all 16-bit values.

The choice changes the speed, not the values. Without a compiler every operator is a pass over memory; on blocks that stay in
the cache the passes are cheap.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from activations.kernels.formula import Formula, Total, may_look, working_dtype

log = logging.getLogger(__name__)

Columns = Sequence[tuple[Tensor, ...]]

# Elements: starting the threads of an operator costs some 15 us, as much as 200,000 elements of it; four buffers of twice this
# leave the third-level cache. Zen 3, 32 MiB, of GELU's time at 2^18, 2^19, 2^20: Hermite 3 0.90, 0.84, 0.86 at 4 x 256 x 1536,
# 0.72, 0.62, 0.70 at 8 x 1024 x 3072; tropical 6 1.82, 1.64, 2.02 and 1.49, 1.25, 1.52; Fourier 5 loses 3 to 6 % at 2^19,
# rational, xIELU and tropical rational 9 to 15 % at the small shape in float32.
BLOCK = 1 << 19
# Inductor fuses dx with sums over everything, but each costs it a cascade of accumulators; sums row by row it does not fuse.
FUSED_SUMS = 8
TILE = 128  # rows that are summed before the next are read; a power of 2
PATTERNS = 1 << 16
# Measured against blocks: 1.2 to 1.4 of their time at half of this, 0.5 to 0.75 at this (Fourier, tropical, Hermite 8, xIELU).
TABLE_PAYS_FROM = 4 * PATTERNS


def choose(formula: Formula, x: Tensor) -> str:
    """`whole` under a compiler or tracer and off the CPU, `table` for dear formulas of many 16-bit values, else `blocks`."""
    if not may_look(x):
        return "whole"
    path = "table" if formula.tabulated and x.itemsize == 2 and x.shape[1] == 1 and x.numel() >= TABLE_PAYS_FROM else "blocks"
    _announce(path, x.dtype)
    return path


def value(formula: Formula, x: Tensor, columns: Columns) -> Tensor:
    """F(x) for contiguous x (n, rows, width), rounded once to x's dtype."""
    path = choose(formula, x)
    if path == "whole":
        return formula.value(x.to(working_dtype(x)), None, *columns).to(x.dtype)
    if path == "table":
        entries = formula.value(_all_patterns(x.dtype), None, *columns).to(x.dtype)
        return entries.index_select(0, _pattern(x)).view(x.shape)
    y = torch.empty_like(x)
    widen, buffer = _widener(x), _widener(x)
    for x_block, y_block in zip(_split(x), _split(y), strict=True):
        result = formula.value(widen(x_block), buffer(y_block, fill=False), *columns)
        if result is not y_block:
            y_block.copy_(result)
    return y


def gradients(formula: Formula, x: Tensor, dy: Tensor, columns: Columns, learned: bool) -> tuple[Tensor, Tensor]:
    """(dy F'(x) in x's dtype, the sums (rows, number of sums)) for contiguous x and dy; the sums are void unless `learned`."""
    path = choose(formula, x)
    if path == "whole":
        z = x.to(working_dtype(x))
        dz, products = formula.gradients(z, dy.to(working_dtype(x)), _product, None, *columns)
        if x.device.type == "cpu" and x.shape[1] == 1 and len(products) <= FUSED_SUMS:
            return dz.to(x.dtype), _gather([product.sum() for product in products], len(products))
        return dz.to(x.dtype), _gather([_row_sums(product) for product in products], len(products))
    total = _no_total if not learned else _dot if x.shape[1] == 1 else _row_total
    if path == "table":
        return _from_table(formula, x, dy, columns, total)
    dx = torch.empty_like(x)
    parts: list[Tensor] = []
    widen, widen_dy, buffer = _widener(x), _widener(x), _widener(x)
    for x_block, dy_block, dx_block in zip(_split(x), _split(dy), _split(dx), strict=True):
        result, sums = formula.gradients(widen(x_block), widen_dy(dy_block), total, buffer(dx_block, fill=False), *columns)
        if result is not dx_block:
            dx_block.copy_(result)
        parts.extend(sums)
    return dx, _gather(parts, len(sums))


def _from_table(formula: Formula, x: Tensor, dy: Tensor, columns: Columns, total: Total) -> tuple[Tensor, Tensor]:
    """All elements of one pattern have the same F'; its part of the sums is weighted by all dy that fell on it."""
    pattern = _pattern(x)
    z, dy_flat = _all_patterns(x.dtype), dy.view(-1).float()
    slopes, _ = formula.gradients(z, torch.ones_like(z), _no_total, None, *columns)
    dx = slopes.index_select(0, pattern).mul_(dy_flat).to(x.dtype)
    weights = torch.bincount(pattern, dy_flat, PATTERNS).float()
    # A pattern that x does not hold may be inf or NaN; it must not meet its weight of zero.
    _, sums = formula.gradients(torch.where(weights == 0, 0, z), weights, total, None, *columns)
    return dx.view(x.shape), _gather(sums, len(sums))


@cache
def _announce(path: str, dtype: torch.dtype) -> None:
    log.debug("activations of %s run eagerly on the CPU: %s", dtype, path)


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


def _gather(sums: Sequence[Tensor], count: int) -> Tensor:
    """`count` sums a block, one block after the other, each 0-dim or (rows, 1): added up as (rows, count)."""
    stacked = torch.stack(list(sums))
    return stacked.view(-1, count, stacked[0].numel()).sum(0).t()


def _row_sums(product: Tensor) -> Tensor:
    """(n, rows, width) summed to (rows, 1), under a compiler; columns on a CPU first over tiles of n.

    Inductor sums columns strip by strip, a cache line of every row: a tile's lines stay in the cache and its pages in the TLB
    (8192 x 3072, float32, seven sums: 16 -> 10 ms).
    """
    n, rows, width = product.shape
    if width > 1 or product.device.type != "cpu" or n % TILE:  # a compiler may know n as a symbol: two cases, two graphs
        return product.sum(-1, keepdim=True).sum(0)
    return product.view(n // TILE, TILE, rows, 1).sum(1).sum(0)


def _product(u: Tensor, v: Tensor | None = None) -> Tensor:
    """What is to be summed later, by plain reductions: a dot product in the loop that Inductor makes of it cost 5x."""
    return u.clone() if v is None else u * v


def _dot(u: Tensor, v: Tensor | None = None) -> Tensor:
    """For flat blocks: no temporary for the product."""
    return u.sum() if v is None else torch.dot(u, v)


def _row_total(u: Tensor, v: Tensor | None = None) -> Tensor:
    return (u if v is None else u * v).sum((0, 2)).unsqueeze(-1)


def _no_total(u: Tensor, v: Tensor | None = None) -> Tensor:
    return u.new_zeros(())
