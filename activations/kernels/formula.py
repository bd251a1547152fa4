"""What a family of pointwise functions has to say about itself, as plain torch on blocks (n, rows, width).

n positions, `width` channels that share one of `rows` rows of coefficients. Inductor fuses a formula into one loop;
`paths` says how it is run elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Total(Protocol):
    """Sum of u, or of u v, over the elements that share a row of coefficients: 0-dim for one row, (rows, 1) otherwise."""

    def __call__(self, u: Tensor, v: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Formula:
    """Coefficients come as (rows, k) in the working dtype; columns are tuples of k tensors, each 0-dim (one row) or (rows, 1).

    `out` is None or a buffer of z's shape and dtype that the result may be built in and returned as; z and g stay untouched.
    """

    prepare: Callable[..., tuple[Tensor, ...]]
    """(*coefficients) -> tensors (rows, m), made once a call; `value` and `gradients` get them as columns."""
    value: Callable[..., Tensor]
    """(z, out, *columns) -> F(z)."""
    gradients: Callable[..., tuple[Tensor, Sequence[Tensor]]]
    """(z, g, total: Total, out, *columns) -> (g F'(z), sums), each sum a `total`."""
    collect: Callable[..., tuple[Tensor | None, ...]]
    """(sums (rows, number of sums), *coefficients) -> a gradient (rows, k) for each coefficient tensor, None for constants."""
    tabulated: bool = False
    """Dear enough op by op that 16-bit inputs on a CPU are better served from a table of all their values."""


def may_look(z: Tensor) -> bool:
    """Whether code may choose by the numbers in z: where they are at hand, on a CPU, and no compiler or tracer follows."""
    if torch.compiler.is_compiling() or z.device.type != "cpu":
        return False
    return type(z) is Tensor and not torch._C._len_torch_dispatch_stack()  # FakeTensorMode, make_fx; no public name for it


def working_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for everything else."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
