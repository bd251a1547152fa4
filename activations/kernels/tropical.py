"""Max-plus polynomials: F(x) = S max_k(k x + b_k), and the difference of two with free slopes.

The pieces of a maximum of lines take over in the order of their slopes, so a threshold for each says which is the largest:
derivatives need one comparison a piece, not a chain of maxima. At a tie the piece of lowest slope gets the gradient.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from activations.kernels.formula import Formula, Total
from activations.kernels.pointwise import Pointwise


def tropical(scale: Tensor, intercepts: Tensor) -> Pointwise:
    """x -> scale * max_k(k x + b_k), differentiable in x, scale and intercepts.

    scale: (1,) or (rows, 1); intercepts: (n + 1,) or (rows, n + 1).
    """
    return Pointwise(_TROPICAL, scale, intercepts)


def tropical_rational(slopes: Tensor, intercepts: Tensor, slopes_den: Tensor, intercepts_den: Tensor) -> Pointwise:
    """x -> max_k(m_k x + b_k) - max_k(m'_k x + b'_k), differentiable in x and all four.

    x is clamped to +-LARGEST_INPUT; each coefficient tensor: (n + 1,) or (rows, n + 1).
    """
    return Pointwise(_RATIONAL, slopes, intercepts, slopes_den, intercepts_den)


def reference(x: Tensor, scale: Tensor, intercepts: Tensor) -> Tensor:
    """`tropical` in plain torch for autograd to differentiate; coefficients (k,) or (channels, k), x in the working dtype."""
    return scale[..., 0] * torch.stack([k * x + intercepts[..., k] for k in range(intercepts.shape[-1])]).max(0).values


def rational_reference(x: Tensor, slopes: Tensor, intercepts: Tensor, slopes_den: Tensor, intercepts_den: Tensor) -> Tensor:
    """`tropical_rational` likewise."""
    top = torch.stack([slopes[..., k] * x + intercepts[..., k] for k in range(slopes.shape[-1])]).max(0).values
    return (
        top - torch.stack([slopes_den[..., k] * x + intercepts_den[..., k] for k in range(slopes_den.shape[-1])]).max(0).values
    )


# Two infinite maxima would make NaN.
LARGEST_INPUT = 1e30


def thresholds(slopes: Tensor, intercepts: Tensor) -> Tensor:
    """T (rows, n) of n + 1 lines (rows, n + 1), slopes ascending: for x > T_k, and only there, the largest line is among k..n.

    T_k = min_{j >= k} max_{i < k} of where line j overtakes line i. T ascends; equal neighbours bound a piece that is never
    the largest.
    """
    rise = slopes.unsqueeze(1) - slopes.unsqueeze(2)  # (rows, i, j): m_j - m_i
    lead = intercepts.unsqueeze(2) - intercepts.unsqueeze(1)  # b_i - b_j
    overtakes = torch.where(rise > 0, lead / rise, torch.where(lead < 0, -torch.inf, torch.inf))
    index = torch.arange(slopes.shape[-1], device=slopes.device)
    k = index[1:].view(-1, 1, 1)
    last = torch.where(index.view(-1, 1) < k, overtakes.unsqueeze(1), -torch.inf).amax(2)  # (rows, k, j)
    return torch.where(index >= k.squeeze(-1), last, torch.inf).amin(2)


def _pieces(sums: Tensor) -> Tensor:
    """Sums over x > T_k for k = 0..n (T_0 = -inf) into sums over where piece k is the largest."""
    return sums - torch.cat([sums[:, 1:], torch.zeros_like(sums[:, :1])], dim=1)


def _prepare(scale: Tensor, intercepts: Tensor) -> tuple[Tensor, ...]:
    k = torch.arange(intercepts.shape[-1], dtype=intercepts.dtype, device=intercepts.device)
    return scale, intercepts, thresholds(k.expand_as(intercepts), intercepts)


def _value(z: Tensor, out: Tensor | None, scale: Sequence[Tensor], b: Sequence[Tensor], steps: Sequence[Tensor]) -> Tensor:
    """Horner's rule in the max-plus semiring: max(b_0, z + max(b_1, z + ...))."""
    y = torch.add(z, b[-1], out=out)
    for b_k in reversed(b[1:-1]):
        torch.maximum(y, b_k, out=y).add_(z)
    return torch.maximum(y, b[0], out=y).mul_(scale[0])


def _gradients(
    z: Tensor,
    g: Tensor,
    total: Total,
    out: Tensor | None,
    scale: Sequence[Tensor],
    b: Sequence[Tensor],
    steps: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Sums: g times the piece's number times x, then g over x > T_k, k = 0..n."""
    piece, sums = torch.zeros_like(z), [total(g)]
    for step in steps:
        above = torch.empty_like(z).copy_(z).gt_(step)
        piece.add_(above)
        sums.append(total(g, above))
    dz = torch.mul(piece, g, out=out)
    return dz.mul_(scale[0]), [total(piece.mul_(g), z), *sums]


def _collect(sums: Tensor, scale: Tensor, intercepts: Tensor) -> tuple[Tensor, Tensor]:
    shares = _pieces(sums[:, 1:])
    return sums[:, :1] + (intercepts * shares).sum(1, keepdim=True), scale * shares


def _prepare_rational(*coefficients: Tensor) -> tuple[Tensor, ...]:
    """The coefficients, then for each of the two maxima its slopes in ascending order and its thresholds."""
    m, b, m_den, b_den = coefficients
    ascending, order = m.sort(dim=1, stable=True)
    ascending_den, order_den = m_den.sort(dim=1, stable=True)
    steps, steps_den = thresholds(ascending, b.gather(1, order)), thresholds(ascending_den, b_den.gather(1, order_den))
    return *coefficients, ascending, steps, ascending_den, steps_den


def _rational_value(z: Tensor, out: Tensor | None, *columns: Sequence[Tensor]) -> Tensor:
    z = z.clamp(-LARGEST_INPUT, LARGEST_INPUT)
    return _maximum(z, columns[0], columns[1]).sub_(_maximum(z, columns[2], columns[3]))


def _maximum(z: Tensor, m: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    y = torch.mul(z, m[0]).add_(b[0])
    for m_k, b_k in zip(m[1:], b[1:], strict=True):
        torch.maximum(y, torch.mul(z, m_k).add_(b_k), out=y)
    return y


def _rational_gradients(
    z: Tensor, g: Tensor, total: Total, out: Tensor | None, *columns: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Sums: g x and g over x > T_k, k = 0..n, of the first maximum, then of the second."""
    gz = g * z
    slope, sums = torch.zeros_like(z), []
    for sign, m, steps in ((1, columns[4], columns[5]), (-1, columns[6], columns[7])):
        slope.add_(m[0], alpha=sign)
        of_gz, of_g = [total(gz)], [total(g)]
        for step, gain in zip(steps, [sign * (b - a) for a, b in pairwise(m)], strict=True):
            above = torch.empty_like(z).copy_(z).gt_(step)
            slope.addcmul_(above, gain)
            of_gz.append(total(gz, above))
            of_g.append(total(g, above))
        sums += of_gz + of_g
    return slope.mul_(g), sums


def _collect_rational(sums: Tensor, *coefficients: Tensor) -> tuple[Tensor, ...]:
    m, _, m_den, _ = coefficients
    parts = sums.split([c.shape[1] for c in coefficients], dim=1)
    orders = (order for slopes in (m, m_den) for order in [slopes.sort(dim=1, stable=True).indices] * 2)
    shares = [torch.empty_like(part).scatter_(1, order, _pieces(part)) for part, order in zip(parts, orders, strict=True)]
    return *shares[:2], *[-share for share in shares[2:]]


_TROPICAL = Formula(prepare=_prepare, value=_value, gradients=_gradients, collect=_collect, tabulated=True)
_RATIONAL = Formula(
    prepare=_prepare_rational, value=_rational_value, gradients=_rational_gradients, collect=_collect_rational, tabulated=True
)
