"""Max-plus polynomials: F(x) = S max_k(k x + b_k), and the difference of two with free slopes."""

from typing import Any

import torch
from torch import Tensor

from activations.kernels.rows import columns, row_sums, working_dtype


def tropical(x: Tensor, scale: Tensor, intercepts: Tensor) -> Tensor:
    """scale * max_k(k x + b_k), differentiable in x, scale and intercepts; at a tie the piece of lowest k gets the gradient.

    x: (..., channels); scale: (1,) or (rows, 1); intercepts: (n + 1,) or (rows, n + 1). Returns x's shape and dtype.
    """
    y: Tensor = _Tropical.apply(x, scale, intercepts)
    return y


def tropical_rational(x: Tensor, slopes: Tensor, intercepts: Tensor, slopes_den: Tensor, intercepts_den: Tensor) -> Tensor:
    """max_k(m_k x + b_k) - max_k(m'_k x + b'_k), differentiable in x and all four; at a tie the piece of lowest k gets the gradient.

    x: (..., channels); every coefficient tensor: (n + 1,) or (rows, n + 1). Returns x's shape and dtype.
    """
    y: Tensor = _TropicalRational.apply(x, slopes, intercepts, slopes_den, intercepts_den)
    return y


def reference(x: Tensor, scale: Tensor, intercepts: Tensor) -> Tensor:
    """`tropical` in plain torch for autograd to differentiate."""
    z = x.to(working_dtype(x))
    pieces = [k * z + b_k for k, b_k in enumerate(columns(intercepts, x))]
    return (columns(scale, x)[0] * _top(pieces)).to(x.dtype)


def rational_reference(x: Tensor, slopes: Tensor, intercepts: Tensor, slopes_den: Tensor, intercepts_den: Tensor) -> Tensor:
    """`tropical_rational` in plain torch for autograd to differentiate."""
    z = x.to(working_dtype(x))
    tops = [
        _top([m_k * z + b_k for m_k, b_k in zip(columns(m, x), columns(b, x), strict=True)])
        for m, b in ((slopes, intercepts), (slopes_den, intercepts_den))
    ]
    return (tops[0] - tops[1]).to(x.dtype)


def _top(pieces: list[Tensor]) -> Tensor:
    """Largest of the pieces, element by element; the gradient goes to the first of equals."""
    top = pieces[0]
    for piece in pieces[1:]:
        top = torch.where(piece > top, piece, top)
    return top


def _masks(pieces: list[Tensor]) -> list[Tensor]:
    """One boolean mask a piece: where it is the first that reaches the maximum."""
    top, taken, masks = _top(pieces), torch.zeros_like(pieces[0], dtype=torch.bool), []
    for piece in pieces:
        masks.append((piece == top) & ~taken)
        taken = taken | masks[-1]
    return masks


class _Tropical(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor, intercepts: Tensor) -> Tensor:
        return reference(x, scale, intercepts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, scale, intercepts = ctx.saved_tensors
        z, g = x.to(working_dtype(x)), dy.to(working_dtype(x))
        (s,) = columns(scale, x)
        pieces = [k * z + b_k for k, b_k in enumerate(columns(intercepts, x))]
        masks = _masks(pieces)
        slope = sum(k * mask.to(z.dtype) for k, mask in enumerate(masks))
        return (
            (g * s * slope).to(x.dtype),
            row_sums([g * _top(pieces)], scale),
            row_sums([torch.where(m, g * s, 0) for m in masks], intercepts),
        )


class _TropicalRational(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, slopes: Tensor, intercepts: Tensor, slopes_den: Tensor, intercepts_den: Tensor) -> Tensor:
        return rational_reference(x, slopes, intercepts, slopes_den, intercepts_den)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, *coefficients = ctx.saved_tensors
        z, g = x.to(working_dtype(x)), dy.to(working_dtype(x))
        dx, gradients = torch.zeros_like(z), []
        for sign, m, b in ((1, *coefficients[:2]), (-1, *coefficients[2:])):
            slopes = columns(m, x)
            masks = _masks([m_k * z + b_k for m_k, b_k in zip(slopes, columns(b, x), strict=True)])
            shares = [torch.where(mask, sign * g, 0) for mask in masks]
            dx = dx + sum(m_k * share for m_k, share in zip(slopes, shares, strict=True))
            gradients += [row_sums([share * z for share in shares], m), row_sums(shares, b)]
        return dx.to(x.dtype), *gradients
