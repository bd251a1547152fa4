"""A law that is known is found again from its points, and what it foretells far away; too few points are refused."""

from itertools import product

import numpy as np
import pytest

from comparison.scaling.law import KINDS, Law, fit

SIZES, LENGTHS = (2e5, 8e5, 2.7e6, 6e6), (8e5, 2.4e6, 8e6, 2.4e7)
TRUE = Law(
    E=np.full(3, 1.1), A=np.array([40.0, 38.0, 41.0]), B=np.array([180.0, 150.0, 190.0]),
    a=np.full(3, 0.34), b=np.full(3, 0.28), error=0.0,
)  # fmt: skip
FAR = (124e6, 2.5e9)


def points(
    law: Law, noise: float = 0.0, sizes: tuple[float, ...] = SIZES
) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    arms, parameters, tokens = zip(*product(range(3), sizes, LENGTHS), strict=True)
    losses = [float(law.loss(*place)) for place in zip(arms, parameters, tokens, strict=True)]
    spread = np.exp(noise * np.random.default_rng(0).normal(size=len(losses)))
    return list(arms), np.array(parameters), np.array(tokens), np.array(losses) * spread


def difference(law: Law, arm: int) -> float:
    return float(law.loss(arm, *FAR) - law.loss(0, *FAR))


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_the_law_is_found_to_the_last_digits(kind: str) -> None:
    law = fit(*points(TRUE), kind)
    for name in ("E", "A", "B", "a", "b"):
        assert np.allclose(getattr(law, name), getattr(TRUE, name), rtol=1e-4), name
    assert law.error < 1e-8


def test_with_noise_the_shared_law_foretells_the_difference_better_than_laws_apart() -> None:
    """0.1 % of noise, as a mean over a few seeds has; a factor of 20 in size and 100 in tokens beyond the last point."""
    off = {}
    for kind in KINDS:
        law = fit(*points(TRUE, 1e-3), kind)
        off[kind] = max(abs(difference(law, arm) - difference(TRUE, arm)) for arm in (1, 2))
        assert 0.0005 < law.error < 0.0015
    assert off["shared"] < 0.01
    assert off["shared"] < off["own limit"]
    assert off["shared"] < off["apart"]


def test_a_law_with_coefficients_of_its_own_for_each_arm_is_found_apart_alone() -> None:
    other = Law(np.array([1.1, 1.05, 1.1]), TRUE.A, TRUE.B, np.array([0.34, 0.34, 0.4]), TRUE.b, 0.0)
    apart, shared = (fit(*points(other), kind) for kind in ("apart", "shared"))
    assert difference(apart, 1) == pytest.approx(difference(other, 1), abs=1e-4)
    assert apart.error < 1e-6 < shared.error


def test_a_difference_that_stays_is_found_with_limits_of_their_own() -> None:
    """The shared law lets every difference go to zero, whatever the points say."""
    other = Law(np.array([1.1, 1.05, 1.1]), TRUE.A, TRUE.B, TRUE.a, TRUE.b, 0.0)
    law = fit(*points(other), "own limit")
    assert np.allclose(law.E, other.E, rtol=1e-4)
    assert difference(law, 1) == pytest.approx(difference(other, 1), abs=1e-4)
    assert abs(difference(fit(*points(other)), 1) - difference(other, 1)) > 0.01


def test_one_wild_point_does_not_move_the_law_far() -> None:
    arms, sizes, tokens, losses = points(TRUE)
    losses[5] *= 1.1
    law = fit(arms, sizes, tokens, losses)
    assert difference(law, 1) == pytest.approx(difference(TRUE, 1), abs=0.01)


def test_a_fit_from_a_law_is_the_fit_from_the_grid() -> None:
    data = points(TRUE, 1e-3)
    law = fit(*data)
    again = fit(*data, start=law)
    assert np.allclose([difference(law, arm) for arm in (1, 2)], [difference(again, arm) for arm in (1, 2)], atol=1e-5)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="2 sizes are too few for a law of the loss; it needs 3"):
        fit(*points(TRUE, sizes=SIZES[:2]))
    _, sizes, tokens, losses = points(TRUE)
    few = np.array([0, 1, 2, 3, 6, 9])  # three sizes and four lengths of one arm
    with pytest.raises(ValueError, match="points are too few for the 9 coefficients of 3 arms"):
        fit([0, 0, 0, 0, 1, 2], sizes[few], tokens[few], losses[few])
