"""Arms and contrasts: pairing by seed, choice of rates on held-out documents, correction, verdicts."""

from typing import Any

import numpy as np
import pytest

from comparison import statistics, summary
from comparison.record import read
from comparison.results import Results, Settings
from comparison.summary import summarise


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
    values = summary.to_json(summarise(Results(Settings(), records)))
    assert [arm["label"] for arm in values["arms"]] == ["gelu", "relu"]
    assert values["contrasts"][0]["interval"]["mean"] == 0
    assert values["contrasts"][0]["verdict"] == "no difference shown"
