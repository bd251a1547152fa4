"""Arms: names, and the choice of learning rates on held-out documents."""

from typing import Any

import pytest

from comparison.arm import best_rate
from comparison.record import Record, read, short
from comparison.results import Results, Settings
from comparison.summary import summarise


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
