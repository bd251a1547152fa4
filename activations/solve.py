"""Deterministic least squares in float64: linear, sign-constrained, and nonlinear. Small dense problems, no random numbers."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from activations.target import Target

ROUNDING = 2.0**-20  # sixteen units of float32


def linear(target: Target, basis: Tensor, slopes: Tensor) -> Tensor:
    """Coefficients c (k,) that minimise the target's misfit of basis @ c in value and slopes @ c in derivative, both (N, k)."""
    matrix, right = stack(target, basis, slopes)
    return scaled_lstsq(matrix, right)


def stack(target: Target, basis: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """The misfit as |matrix @ c - right|^2: weighted values over weighted slopes, (2N, k) and (2N,)."""
    w = target.weight.sqrt()
    matrix = torch.cat([w[:, None] * basis, target.slope_scale * w[:, None] * slopes])
    return matrix, torch.cat([w * target.value, target.slope_scale * w * target.slope])


def scaled_lstsq(matrix: Tensor, right: Tensor) -> Tensor:
    """Least squares by SVD, columns scaled to unit norm: powers of z differ by many orders."""
    norms = matrix.norm(dim=0).clamp(min=torch.finfo(matrix.dtype).tiny)
    solution: Tensor = torch.linalg.lstsq(matrix / norms, right[:, None], driver="gelsd").solution[:, 0] / norms
    return solution


def signed_lstsq(matrix: Tensor, right: Tensor, signs: Tensor) -> Tensor:
    """Least squares with signs_j c_j >= 0 where signs_j is +-1, free where it is 0, by active sets.

    Lawson and Hanson, Solving least squares problems (1974), chapter 23.
    """
    flipped = matrix * torch.where(signs == 0, 1.0, signs)
    bound = signs != 0
    free = ~bound
    c = torch.zeros_like(right[: matrix.shape[1]])
    c[free] = scaled_lstsq(flipped[:, free], right)
    for _ in range(3 * matrix.shape[1]):
        gradient = flipped.T @ (right - flipped @ c)
        gradient = torch.where(free, -torch.inf, gradient)
        if gradient.max() <= 1e-12 * right.norm() * matrix.norm():
            break
        free[gradient.argmax()] = True
        while True:
            trial = torch.zeros_like(c)
            trial[free] = scaled_lstsq(flipped[:, free], right)
            negative = free & bound & (trial <= 0)
            if not negative.any():
                break
            step = (c[negative] / (c[negative] - trial[negative])).min()
            c = c + step * (trial - c)
            free = free & ~(bound & (c <= 1e-15))
            c = torch.where(free, c, 0.0)
        c = trial
    return c * torch.where(signs == 0, 1.0, signs)


class Projection(NamedTuple):
    """The misfit |design(theta) c - right|^2 at its least over c (k,), and where: theta (p,)."""

    misfit: float
    theta: Tensor
    c: Tensor


class _Point(NamedTuple):
    """A `Projection` with an orthonormal basis of the columns there, as `_project` has them."""

    misfit: float
    theta: Tensor
    c: Tensor
    basis: Tensor


def project(design: Callable[[Tensor], Tensor], right: Tensor, theta: Tensor) -> Projection:
    """The best c at `theta` as it is; design: theta (p,) to (N, k), right (N,)."""
    return Projection(*_project(design, right, theta)[:3])


def variable_projection(design: Callable[[Tensor], Tensor], right: Tensor, start: Tensor, steps: int = 60) -> Projection:
    """A local minimum over theta and c from theta = `start`, never worse than there, by damped Gauss-Newton over theta alone.

    Golub and Pereyra 1973, with Kaufman's (1975) Jacobian -P (d design / d theta) c, P the projection off the design's columns.
    """

    def linearised(found: _Point) -> tuple[Tensor, Tensor]:
        tangent, fitted = _jacobian(functools.partial(_priced, design, c=found.c), found.theta)
        return found.basis @ (found.basis.T @ tangent) - tangent, F.pad(right, (0, len(found.c))) - fitted

    best = _descend(functools.partial(_project, design, right), linearised, start, steps, enough=1e-5)
    return Projection(*best[:3])


def gauss_newton(residual: Callable[[Tensor], Tensor], start: Tensor, steps: int = 100) -> Tensor:
    """A local minimum theta (p,) of |residual(theta)|^2 from `start`, never worse than there, by damped steps.

    residual: (p,) to (N,), differentiable as often as autograd is asked.
    """

    def at(theta: Tensor) -> _Point:
        misfit = float(residual(theta).detach().square().sum())
        return _Point(misfit if math.isfinite(misfit) else math.inf, theta, theta, theta)

    return _descend(at, lambda found: _jacobian(residual, found.theta), start, steps, enough=1e-6).theta


def _descend(
    at: Callable[[Tensor], _Point],
    linearised: Callable[[_Point], tuple[Tensor, Tensor]],
    start: Tensor,
    steps: int,
    enough: float,
) -> _Point:
    """Steps of Gauss-Newton, damped until the misfit falls (Levenberg 1944, Marquardt 1963), while one gains `enough` of it.

    linearised: a point to the Jacobian (N, p) and the residual (N,).
    """
    best, damping = at(start), 1e-3
    for _ in range(steps):
        J, r = linearised(best)
        if not J.isfinite().all():
            return best
        scale = J.norm(dim=0).clamp(min=1e-12 * J.norm() + 1e-30)
        curvature, gradient = (J / scale).T @ (J / scale), (J / scale).T @ r
        for _ in range(12):
            # Normal equations: the damped step need not be accurate, and p x p solves do not wait for other threads.
            damped = curvature + damping * torch.eye(len(scale), dtype=scale.dtype)
            step = -torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(damped))[:, 0] / scale
            trial = at(best.theta + step)
            if trial.misfit < best.misfit:
                break
            damping *= 4
        else:
            return best
        gained = 1 - trial.misfit / best.misfit
        best, damping = trial, max(damping / 6, 1e-10)
        if gained < enough:
            return best
    return best


def best_projection(
    design: Callable[[Tensor], Tensor], right: Tensor, starts: Sequence[Tensor], steps: int = 60, kept: int = 2
) -> Projection:
    """The lowest of the minima from `starts`: a few steps from each, then all `steps` from the `kept` ones that are lowest.

    Never worse than plain least squares at the first start.
    """
    tried = sorted((variable_projection(design, right, start, steps // 6) for start in starts), key=lambda found: found.misfit)
    best = min((variable_projection(design, right, one.theta, steps) for one in tried[:kept]), key=lambda found: found.misfit)
    matrix = design(starts[0])
    c = scaled_lstsq(matrix, right)
    unrefined = Projection(float((matrix @ c - right).square().sum()), starts[0], c)
    refined = best._replace(misfit=float((design(best.theta) @ best.c - right).square().sum()))
    return min(refined, unrefined, key=lambda found: found.misfit)


def _project(design: Callable[[Tensor], Tensor], right: Tensor, theta: Tensor) -> _Point:
    """The best c, and an orthonormal basis (N + k, k) of the priced design's columns: the design over ROUNDING times its norms.

    Each coefficient pays for the rounding of its column in float32, or columns that nearly cancel would get huge ones.
    """
    matrix = design(theta)
    if not matrix.isfinite().all():
        return _Point(math.inf, theta, torch.zeros_like(matrix[0]), matrix)
    norms = matrix.norm(dim=0).clamp(min=torch.finfo(matrix.dtype).tiny)
    price = ROUNDING * torch.eye(len(norms), dtype=matrix.dtype)
    Q, R = torch.linalg.qr(torch.cat([matrix / norms, price]))
    wanted = Q[: len(right)].T @ right
    scaled = torch.linalg.solve_triangular(R, wanted[:, None], upper=True)[:, 0]
    c = scaled / norms
    misfit = (right - matrix @ c).square().sum() + (ROUNDING * scaled).square().sum()
    return _Point(float(misfit), theta, c, Q)


def _priced(design: Callable[[Tensor], Tensor], theta: Tensor, c: Tensor) -> Tensor:
    """What c makes of the design, over what it pays: (N + k,)."""
    matrix = design(theta)
    return torch.cat([matrix @ c, ROUNDING * matrix.norm(dim=0) * c])


def _jacobian(function: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    """d function / d theta, (N, p), and function(theta), (N,), by p reverse passes: J^T is v -> J^T v's derivative.

    Not torch.func.jacfwd nor forward_ad: both import the compiler at first use, 1.4 s; so does passing v as grad_outputs.
    """
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        f = function(theta)
        v = torch.zeros_like(f, requires_grad=True)
        (pulled_back,) = torch.autograd.grad((f * v).sum(), theta, create_graph=True)
        columns = [torch.autograd.grad(entry, v, retain_graph=True)[0] for entry in pulled_back]
    return torch.stack(columns, dim=1), f.detach()


def golden_section(misfit: Callable[[float], float], low: float, high: float, evaluations: int = 20) -> float:
    """Where `misfit` is smallest on [low, high] in log scale: the best of a coarse grid, then its bracket by golden section."""
    count = evaluations // 2
    grid: list[float] = [low * (high / low) ** (i / (count - 1)) for i in range(count)]
    misfits = [misfit(point) for point in grid]
    best = misfits.index(min(misfits))
    a, b = grid[max(best - 1, 0)], grid[min(best + 1, count - 1)]
    golden = 0.5 * (math.sqrt(5) - 1)
    for _ in range(count):
        left, right = b - golden * (b - a), a + golden * (b - a)
        a, b = (a, right) if misfit(left) < misfit(right) else (left, b)
    return (a + b) / 2
