"""Intervals and corrections against scipy and hand-computed cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from comparison import statistics

finite = st.floats(-10, 10, allow_nan=False, width=32)


def test_paired_t_equals_the_textbook_case() -> None:
    # Differences 1, 2, 3: mean 2, sd 1, t(2; 0.975) = 4.302652729911275, half width 4.3027 / sqrt(3).
    interval = statistics.paired_t([2, 4, 6], [1, 2, 3])
    assert interval.mean == 2
    assert interval.low == pytest.approx(2 - 4.302652729911275 / np.sqrt(3), abs=1e-9)
    assert interval.high == pytest.approx(2 + 4.302652729911275 / np.sqrt(3), abs=1e-9)
    assert interval.p == pytest.approx(1 - np.sqrt(12 / 14), abs=1e-9)  # the closed form of t(2)
    assert interval.holds_zero


@given(st.lists(st.tuples(finite, finite), min_size=3, max_size=12))
def test_paired_t_equals_scipys_related_test(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    interval = statistics.paired_t(a, b)
    if np.ptp(a - b) < 1e-6:
        return
    test = stats.ttest_rel(a, b)
    assert interval.p == pytest.approx(test.pvalue, rel=1e-9, abs=1e-12)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low <= interval.mean <= interval.high
    assert interval.holds_zero == (test.pvalue >= 0.05)
    flipped = statistics.paired_t(b, a)
    assert flipped.mean == -interval.mean
    assert flipped.low == pytest.approx(-interval.high)


def test_paired_t_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(0.3, 1.0, (2000, 4))
    covered = 0
    for row in draws:
        interval = statistics.paired_t(row, np.zeros(4))
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0.3 <= interval.high
    assert covered / len(draws) == pytest.approx(0.95, abs=4 * np.sqrt(0.05 * 0.95 / len(draws)))


def test_one_pair_has_a_difference_and_no_interval() -> None:
    interval = statistics.paired_t([1.5], [1.0])
    assert interval == statistics.Interval(0.5)
    assert interval.holds_zero is None


def test_equal_differences_are_certain() -> None:
    assert statistics.paired_t([1, 2, 3], [1, 2, 3]) == statistics.Interval(0, 0, 0, 1)
    assert statistics.paired_t([1, 2, 3], [0, 1, 2]) == statistics.Interval(1, 1, 1, 0)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        statistics.paired_t([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="equally long"):
        statistics.paired_t([], [])


def test_holm_equals_the_hand_computed_case() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, then 0.04 is raised to 0.06.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []
    assert statistics.holm([0.4]) == [0.4]


def test_holm_passes_over_what_has_no_p_value() -> None:
    assert statistics.holm([None, 0.02, None, 0.03]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = statistics.holm(p_values)
    for p, corrected in zip(p_values, adjusted, strict=True):
        assert corrected is not None
        assert p <= corrected <= min(1.0, p * len(p_values)) + 1e-15
    order = np.argsort(p_values, kind="stable")
    in_order = [adjusted[i] for i in order]
    assert in_order == sorted(in_order)  # type: ignore[type-var]


def test_crossed_holds_its_estimate_and_the_interval_over_seeds() -> None:
    generator = np.random.default_rng(1)
    targets = generator.integers(50, 500, 30)
    for seeds in (2, 3, 5):
        differences = targets * (generator.normal(-0.02, 0.03, (1, 30)) + generator.normal(0, 0.01, (seeds, 1)))
        differences = differences + targets * generator.normal(0, 0.02, (seeds, 30))
        both = statistics.crossed(differences, targets)
        losses = differences.sum(axis=1) / targets.sum()
        over_seeds = statistics.paired_t(losses, np.zeros(seeds))
        assert both.mean == pytest.approx(over_seeds.mean)
        assert None not in (both.low, both.high, over_seeds.low, over_seeds.high)
        assert both.low <= over_seeds.low <= both.mean <= over_seeds.high <= both.high  # type: ignore[operator]


def test_crossed_of_equal_documents_is_the_t_interval_over_seeds() -> None:
    differences = np.outer([1.0, 2.0, 6.0], np.full(40, 10.0))  # all documents agree: nothing depends on the text
    both, over_seeds = statistics.crossed(differences, np.full(40, 10.0)), statistics.paired_t([1, 2, 6], [0, 0, 0])
    assert (both.low, both.high) == (pytest.approx(over_seeds.low), pytest.approx(over_seeds.high))


def test_crossed_of_one_seed_is_the_ratio_estimator() -> None:
    generator = np.random.default_rng(1)
    targets = generator.integers(50, 500, 200)
    differences = targets * generator.normal(-0.02, 0.1, 200)
    interval = statistics.crossed(differences[None], targets)
    residuals = differences - interval.mean * targets
    half = stats.t.ppf(0.975, 199) * np.sqrt(200) * residuals.std(ddof=1) / targets.sum()
    assert interval.high == pytest.approx(interval.mean + half, rel=1e-9)  # the residuals have mean zero
    assert interval.low == pytest.approx(interval.mean - half, rel=1e-9)


def test_crossed_covers_the_truth_over_seeds_and_documents() -> None:
    """Intervals over seeds alone do not, where documents differ in what an activation does to them."""
    generator = np.random.default_rng(0)
    covered, covered_by_seeds = 0, 0
    targets = np.full(40, 100.0)
    for _ in range(400):
        effect = 0.01 + generator.normal(0, 0.02, (1, 40)) + generator.normal(0, 0.002, (3, 1))
        effect = effect + generator.normal(0, 0.01, (3, 40))
        both = statistics.crossed(effect * targets, targets)
        seeds = statistics.paired_t(effect.mean(axis=1), np.zeros(3))
        covered += both.low <= 0.01 <= both.high  # type: ignore[operator]
        covered_by_seeds += seeds.low <= 0.01 <= seeds.high  # type: ignore[operator]
    assert covered / 400 > 0.94
    assert covered_by_seeds / 400 < 0.9


def test_crossed_without_spread_or_documents() -> None:
    assert statistics.crossed([[1.0]], [10]) == statistics.Interval(0.1)
    assert statistics.crossed([[0.0, 0.0]], [10, 20]) == statistics.Interval(0, 0, 0)
    for differences, targets in (([[1.0, 2.0]], [0, 0]), ([[1.0, 2.0]], [1]), ([1.0], [1])):
        with pytest.raises(ValueError, match="targets"):
            statistics.crossed(differences, targets)


@settings(max_examples=50)
@given(st.lists(st.floats(0.5, 5), min_size=2, max_size=20, unique=True))
def test_reached_lies_on_the_curve(losses: list[float]) -> None:
    losses = sorted(losses, reverse=True)
    tokens = np.arange(len(losses)) * 100.0
    goal = (losses[0] + losses[-1]) / 2
    at = statistics.reached(tokens, losses, goal)
    assert at is not None
    assert np.interp(at, tokens, losses) == pytest.approx(goal)
    assert statistics.reached(tokens, losses, losses[-1] - 0.1) is None
    assert statistics.reached(tokens, losses, losses[0]) == 0


def test_spread_and_percent() -> None:
    assert statistics.spread([1.0, 3.0]) == pytest.approx(np.sqrt(2))
    assert statistics.spread([1.0]) is None
    assert statistics.percent(np.log(1.1)) == pytest.approx(10)
