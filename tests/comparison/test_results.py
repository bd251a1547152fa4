"""results.json keeps runs whose folders are gone, merges, and is validated when read."""

import json
from pathlib import Path
from typing import Any

import pytest

from comparison import results
from comparison.record import read, to_json
from comparison.results import Failure, Results, Settings


def test_round_trip(make_run: Any, tmp_path: Path) -> None:
    settings = Settings(
        activations=("gelu", "relu"),
        baseline="relu",
        varied=("mlp_init",),
        rates=(1e-3, 2e-3),
        rate_seeds=(1,),
        failures=(Failure("gelu", "gelu-seed=2", "exit code 1: NaN"),),
    )
    found = Results(settings, (read(make_run("gelu", 1, 1.5)), read(make_run("relu", 1, 1.6))))
    results.save(tmp_path / "deep" / "results.json", found, {"arms": []})
    again = results.load(tmp_path / "deep" / "results.json")
    assert again.settings == settings
    assert [to_json(r) for r in again.records] == [to_json(r) for r in found.records]
    assert (
        len((tmp_path / "deep" / "results.json").read_text().split('"records": [\n')[1].splitlines()) == 2 + 2
    )  # a line a run


def test_an_empty_one_is_whole(tmp_path: Path) -> None:
    results.save(tmp_path / "results.json", Results(Settings()))
    assert results.load(tmp_path / "results.json") == Results(Settings())


def test_gather_takes_runs_sweeps_and_results(make_run: Any, tmp_path: Path) -> None:
    runs = [make_run("gelu", 1, 1.5), make_run("relu", 1, 1.6)]
    assert len(results.gather(runs).records) == 2
    assert len(results.gather([tmp_path / "runs"]).records) == 2
    results.save(tmp_path / "kept" / "results.json", Results(Settings(baseline="relu"), (read(runs[0]),)))
    both = results.gather([tmp_path / "kept", runs[1]])
    assert both.settings.baseline == "relu"
    assert [r.config["activation"] for r in both.records] == ["gelu:exact=false", "relu"]
    with pytest.raises(ValueError, match=r"holds neither results\.json nor finished runs"):
        results.gather([tmp_path / "nowhere"])


def test_shapes_are_kept_for_one_seed(make_run: Any, tmp_path: Path) -> None:
    records = tuple(read(make_run(spec, seed, 1.5)) for spec in ("relu", "hermite:degree=3") for seed in (1, 2, 3))
    results.save(tmp_path / "results.json", Results(Settings(), records))
    kept = results.load(tmp_path / "results.json").records
    assert [bool(record.shapes) for record in kept] == [True, False, False] * 2
    assert all(record.documents for record in kept)


def test_merge_keeps_the_first_order() -> None:
    merged = results.merge(
        Settings(activations=("a", "b"), rates=(2.0,)), Settings(activations=("c", "a"), baseline="c", rates=(1.0,))
    )
    assert merged == Settings(activations=("a", "b", "c"), baseline="c", rates=(1.0, 2.0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"settings": {}, "records": 1}',
        '{"settings": {"surprise": 1}, "records": []}',
        '{"settings": {"activations": ["nope"]}, "records": []}',
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is not a results\.json of compare\.py"):
        results.load(tmp_path / "results.json")


def test_a_bad_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"settings": {}, "records": [{"x": 1}]}))
    with pytest.raises(ValueError, match="run 0: not the record"):
        results.load(tmp_path / "results.json")


def test_only_seeds_that_both_sweeps_tried_at_all_rates_choose_the_rate() -> None:
    one, two, none = Settings(rate_seeds=(1,)), Settings(rate_seeds=(1, 2)), Settings()
    assert results.merge(two, one).rate_seeds == (1,)
    assert results.merge(none, two).rate_seeds == (1, 2)
