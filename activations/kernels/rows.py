"""How a coefficient tensor meets the channels of x: one set for the layer, or one row for each block of channels."""

from collections.abc import Sequence

import torch
from torch import Tensor


def working_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def columns(c: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The k coefficients, each 0-dim or (channels,), in x's working dtype: they broadcast against x (..., channels).

    c: (k,) or (rows, k). Raises ValueError when the rows do not divide the channels.
    """
    c = c.to(working_dtype(x))
    if c.ndim == 1:
        return c.unbind()
    channels, rows = x.shape[-1], c.shape[0]
    if channels % rows:
        raise ValueError(
            f"{rows} rows of coefficients cannot serve {channels} channels; give rows that divide the channels, or one row"
        )
    return c.repeat_interleave(channels // rows, dim=0).unbind(1)


def row_sums(terms: Sequence[Tensor], c: Tensor) -> Tensor:
    """Gradient of c from its k per-element terms, each (..., channels): summed over the elements that each coefficient serves.

    Sums are plain reductions, not dot products: Inductor fuses these into the loop that computes the terms (a dot cost 5x).
    """
    if c.ndim == 1:
        return torch.stack([term.sum() for term in terms]).to(c.dtype)
    rows = c.shape[0]
    # Leading dimensions first, (channels,) next: a column reduction that vectorises over channels.
    sums = [term.sum(dim=tuple(range(term.ndim - 1))).view(rows, -1).sum(dim=1) for term in terms]
    return torch.stack(sums, dim=1).to(c.dtype)
