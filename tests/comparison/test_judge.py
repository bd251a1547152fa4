"""Statistics against scipy and hand-computed cases; arms and contrasts: pairs, rates, correction, verdicts."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from comparison import judge, statistics
from comparison.judge import best_rate, summarise
from comparison.plan import Settings, short
from comparison.record import Record, read
from comparison.results import Results

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


def test_each_activation_gets_its_best_rate_from_documents_that_the_result_leaves_out(make_run: Any) -> None:
    rates = {1e-3: 1.6, 2e-3: 1.5, 4e-3: 1.55}
    records = [
        read(make_run(a, s, v + 0.01 * (a == "relu"), learning_rate=rate))
        for a in ("gelu", "relu")
        for s in (1, 2)
        for rate, v in rates.items()
    ]
    found = summarise(Results(Settings(rates=tuple(rates)), tuple(records)))
    assert [arm.rate for arm in found.arms] == [2e-3, 2e-3]
    chosen = [r for r in records if r.config["activation"].startswith("gelu") and r.config["learning_rate"] == 2e-3]
    assert found.arms[0].losses == tuple(r.part("reports")[0] for r in chosen)
    assert not any(arm.rate_is_at_edge for arm in found.arms)
    edge = summarise(Results(Settings(rates=(2e-3, 4e-3)), tuple(r for r in records if r.config["learning_rate"] > 1e-3)))
    assert all(arm.rate_is_at_edge for arm in edge.arms)
    assert any("edge of its grid" in note for note in edge.notes)
    with pytest.raises(ValueError, match="differ in learning_rate"):
        summarise(Results(Settings(), tuple(records)))


def test_a_rate_that_lost_a_seed_loses(make_run: Any) -> None:
    def record(rate: float, seed: int, loss: float) -> Record:
        return read(make_run("gelu", seed, loss, learning_rate=rate))

    records = [record(1e-3, 1, 1.6), record(1e-3, 2, 1.6), record(2e-3, 1, 1.2)]
    assert best_rate(records) == 1e-3
    assert best_rate(records, seeds=(1,)) == 2e-3
    assert best_rate([*records, record(1e-3, 3, 1.0)], seeds=(1,)) == 2e-3  # seeds run after the choice do not move it


def test_rates_need_documents(make_run: Any) -> None:
    records = tuple(read(make_run("gelu", 1, 1.5, measured=False, learning_rate=rate)) for rate in (1e-3, 2e-3))
    with pytest.raises(ValueError, match="no losses by document"):
        summarise(Results(Settings(rates=(1e-3, 2e-3)), records))


def test_short_specs_keep_degrees_and_what_is_not_the_default() -> None:
    assert short("gelu:exact=false") == "gelu"
    assert short("gelu:exact=true") == "gelu:exact=true"
    assert short("hermite:degree=3,per=layer,init=unit,learnable=true") == "hermite:degree=3"
    assert short("hermite:degree=3,per=channel,init=unit,learnable=false") == "hermite:degree=3,per=channel,learnable=false"


def test_a_difference_smaller_than_the_spread_over_seeds_is_found_by_pairing(make_run: Any) -> None:
    seeds = {1: 1.40, 2: 1.50, 3: 1.65}
    shift = {1: -0.020, 2: -0.022, 3: -0.019}
    records = [read(make_run("gelu", s, v)) for s, v in seeds.items()]
    records += [read(make_run("hermite:degree=3", s, v + shift[s])) for s, v in seeds.items()]
    found = summarise(Results(Settings(), tuple(records)))
    assert [arm.label for arm in found.arms] == ["gelu", "hermite:degree=3"]
    assert found.arms[0].loss == pytest.approx(np.mean(list(seeds.values())))
    assert found.arms[0].deviation == pytest.approx(np.std(list(seeds.values()), ddof=1))
    assert found.arms[0].perplexity == pytest.approx(np.exp(found.arms[0].loss))
    (contrast,) = found.contrasts
    assert contrast.differences == pytest.approx(list(shift.values()))
    assert contrast.interval == statistics.paired_t([v + shift[s] for s, v in seeds.items()], list(seeds.values()))
    assert contrast.p_holm == contrast.interval.p
    assert contrast.verdict == "lower loss"
    assert contrast.tokens_ratio is not None
    assert contrast.tokens_ratio < 1
    assert contrast.seeds_reached == 3


def test_no_difference_shown_where_the_interval_holds_zero(make_run: Any) -> None:
    records = [read(make_run("gelu", s, 1.5)) for s in (1, 2, 3)]
    records += [read(make_run("relu", s, 1.5 + d)) for s, d in ((1, 0.02), (2, -0.03), (3, 0.02))]
    (contrast,) = summarise(Results(Settings(), tuple(records))).contrasts
    assert contrast.verdict == "no difference shown"


def test_holm_counts_all_contrasts_about_the_same(make_run: Any) -> None:
    specs = ("gelu", "relu", "silu", "hermite:degree=3", "hermite:degree=4", "hermite:degree=5")
    noise = np.random.default_rng(0).normal(0, 0.01, (6, 3))
    records = [read(make_run(spec, s, 1.5 - 0.01 * i + noise[i, s])) for i, spec in enumerate(specs) for s in range(3)]
    found = summarise(Results(Settings(), tuple(records)))
    for about, count in (("activation", 5), ("hermite", 2)):
        mine = [c for c in found.contrasts if c.about == about]
        assert len(mine) == count
        assert [c.p_holm for c in mine] == statistics.holm([c.interval.p for c in mine])
    doubtful = [c for c in found.contrasts if c.interval.holds_zero is False and (c.p_holm or 0) >= 0.05]
    assert all(c.verdict.endswith("but not after correction") for c in doubtful)


def test_one_seed_is_judged_by_documents_and_says_so(make_run: Any) -> None:
    records = (read(make_run("gelu", 1, 1.5)), read(make_run("relu", 1, 1.4)))
    (contrast,) = summarise(Results(Settings(), records)).contrasts
    assert contrast.interval.low is None
    assert contrast.documents is not None
    assert contrast.documents.mean == pytest.approx(-0.1)
    assert contrast.verdict == "lower loss, one seed"
    bare = tuple(read(make_run(a, 2, loss, measured=False)) for a, loss in (("gelu", 1.5), ("relu", 1.4)))
    assert summarise(Results(Settings(), bare)).contrasts[0].verdict == "one seed: nothing can be said"


def test_pairs_are_of_shared_seeds(make_run: Any) -> None:
    records = [read(make_run("gelu", s, 1.5)) for s in (1, 2, 3)] + [read(make_run("relu", s, 1.4)) for s in (2, 3, 4)]
    found = summarise(Results(Settings(), tuple(records)))
    assert found.contrasts[0].seeds == (2, 3)
    assert any("Seeds are not the same" in note for note in found.notes)


def test_varied_fields_are_compared_within_and_across(make_run: Any) -> None:
    records = []
    for init in ("gpt2", "unit"):
        for spec in ("gelu", "relu"):
            for s in (1, 2):
                loss = 1.5 + 0.1 * (init == "gpt2") - 0.01 * (spec != "gelu") + 0.001 * s
                records.append(read(make_run(spec, s, loss, mlp_init=init, run={"init_hash": f"{init}{s}"})))
    found = summarise(Results(Settings(varied=("mlp_init",)), tuple(records)))
    pairs = {(c.arm, c.reference): c.about for c in found.contrasts}
    assert pairs == {
        ("relu mlp_init=gpt2", "gelu mlp_init=gpt2"): "activation",
        ("relu mlp_init=unit", "gelu mlp_init=unit"): "activation",
        ("gelu mlp_init=unit", "gelu mlp_init=gpt2"): "mlp_init",
        ("relu mlp_init=unit", "relu mlp_init=gpt2"): "mlp_init",
    }


def test_a_gated_arm_is_paired_with_a_plain_baseline(make_run: Any) -> None:
    """SwiGLU against GELU: other initial weights, the same bytes, and its own name."""
    records = [read(make_run("gelu", s, 1.5 + 0.1 * s)) for s in (1, 2)]
    records += [read(make_run("silu", s, 1.45 + 0.1 * s, mlp="gated", run={"init_hash": f"gated{s}"})) for s in (1, 2)]
    records += [read(make_run("silu", s, 1.49 + 0.1 * s)) for s in (1, 2)]
    found = summarise(Results(Settings(activations=("gelu", "gated(silu)", "silu")), tuple(records)))
    assert {(c.arm, c.reference): c.about for c in found.contrasts} == dict.fromkeys(
        [("swiglu", "gelu"), ("silu", "gelu")], "activation"
    )
    assert found.contrasts[0].differences == pytest.approx([-0.05, -0.05])
    assert {arm.family for arm in found.arms} == {"gelu", "gated(silu)", "silu"}


def test_variants_are_compared_with_their_familys_first(make_run: Any) -> None:
    specs = ("gelu", "hermite:degree=3", "hermite:degree=3,init=paper", "gelu:exact=true", "hermite:degree=5")
    records = tuple(read(make_run(spec, seed, 1.5 - 0.01 * i)) for i, spec in enumerate(specs) for seed in (1, 2))
    pairs = {(c.arm, c.reference): c.about for c in summarise(Results(Settings(activations=specs), records)).contrasts}
    assert pairs == {(spec, "gelu"): "activation" for spec in specs[1:]} | {  # gelu:exact=true has that pair already
        ("hermite:degree=3,init=paper", "hermite:degree=3"): "hermite",
        ("hermite:degree=5", "hermite:degree=3"): "hermite",
    }
    named = summarise(Results(Settings(activations=specs, baseline="hermite:degree=5"), records))
    pairs_of_names = [frozenset((c.arm, c.reference)) for c in named.contrasts]
    assert len(set(pairs_of_names)) == len(pairs_of_names)


def test_the_baseline_may_be_named(make_run: Any) -> None:
    records = tuple(read(make_run(a, 1, 1.5)) for a in ("gelu", "relu"))
    found = summarise(Results(Settings(baseline="relu"), records))
    assert (found.contrasts[0].arm, found.contrasts[0].reference) == ("gelu", "relu")
    with pytest.raises(ValueError, match="baseline 'silu' is not among the runs: gelu, relu"):
        summarise(Results(Settings(baseline="silu"), records))


def test_json_has_every_number_of_the_table(make_run: Any) -> None:
    records = tuple(read(make_run(a, s, 1.5 + 0.01 * s)) for a in ("gelu", "relu") for s in (1, 2))
    values = judge.to_json(summarise(Results(Settings(), records)))
    assert [arm["label"] for arm in values["arms"]] == ["gelu", "relu"]
    assert values["contrasts"][0]["interval"]["mean"] == 0
    assert values["contrasts"][0]["verdict"] == "no difference shown"
