"""Deterministic least squares in float64: linear, sign-constrained, and nonlinear. Small dense problems, no random numbers."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from activations.target import Target


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


def levenberg_marquardt(residuals: Callable[[Tensor], Tensor], start: Tensor, steps: int = 60) -> Tensor:
    """A local minimum of |residuals(theta)|^2 from `start` (k,) by damped Gauss-Newton; residuals: (k,) to (N,)."""
    theta: Tensor = start.detach().clone()
    damping = 1e-3
    r = residuals(theta)
    for _ in range(steps):
        J = _jacobian(residuals, theta)
        scale = J.norm(dim=0).clamp(min=1e-12)
        curvature, gradient = (J / scale).T @ (J / scale), (J / scale).T @ r
        before = r.square().sum()
        for _ in range(12):
            # Normal equations: the damped step need not be accurate, and k x k solves do not wait for other threads.
            damped = curvature + damping * torch.eye(theta.numel(), dtype=theta.dtype)
            step = -torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(damped))[:, 0] / scale
            trial = residuals(theta + step)
            if trial.isfinite().all() and trial.square().sum() < before:
                break
            damping *= 4
        else:
            return theta
        theta, r, damping = theta + step, trial, max(damping / 6, 1e-10)
        if before - r.square().sum() <= 1e-5 * before:
            return theta
    return theta


def _jacobian(residuals: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """(N, k) by k reverse passes: v -> J^T v is linear, and its derivative is J^T.

    Not torch.func.jacfwd nor forward_ad: both import the compiler at first use, 1.4 s; so does passing v as grad_outputs.
    """
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        r = residuals(theta)
        v = torch.zeros_like(r, requires_grad=True)
        (pulled_back,) = torch.autograd.grad((r * v).sum(), theta, create_graph=True)
        columns = [torch.autograd.grad(entry, v, retain_graph=True)[0] for entry in pulled_back]
    jacobian: Tensor = torch.stack(columns, dim=1)
    return jacobian


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
