"""results.json keeps runs whose folders are gone, merges, and is validated; unfair pairs are refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comparison import results
from comparison.plan import Failure, Settings, merge
from comparison.record import read, to_json
from comparison.results import Results


def test_round_trip(make_run: Any, tmp_path: Path) -> None:
    settings = Settings(
        activations=("gelu", "relu"),
        baseline="relu",
        varied=("mlp_init",),
        rates=(1e-3, 2e-3),
        rate_seeds=(1,),
        failures=(Failure("gelu", "gelu-seed=2", "exit code 1: NaN"),),
    )
    gains = {"layer 1": {"step": [0.0, 500.0], "second": [1.0, 2 / 3e4]}}
    runs = (read(make_run("gelu", 1, 1.5)), read(make_run("relu", 1, 1.6)))
    found = Results(settings, tuple(replace(run, gains=gains) for run in runs))
    results.save(tmp_path / "deep" / "results.json", found)
    again = results.load(tmp_path / "deep" / "results.json")
    assert again.settings == settings
    drawn = {"gains", "shapes", "coefficients", "documents"}
    for before, after in zip(map(to_json, found.records), map(to_json, again.records), strict=True):
        assert {name: value for name, value in after.items() if name not in drawn} == {
            name: value for name, value in before.items() if name not in drawn
        }
        for layer, columns in before["gains"].items():
            for name, values in columns.items():
                assert after["gains"][layer][name] == pytest.approx(values, rel=1e-4)
        for name, values in before["documents"].items():
            assert after["documents"][name] == pytest.approx(values, rel=1e-8)
    results.save(tmp_path / "again.json", again)
    assert (tmp_path / "again.json").read_text() == (tmp_path / "deep" / "results.json").read_text()
    assert (
        len((tmp_path / "deep" / "results.json").read_text().split('"records": [\n')[1].splitlines()) == 2 + 2
    )  # a line a run


def test_what_all_records_share_is_written_once_and_comes_back(make_run: Any, tmp_path: Path) -> None:
    records = [read(make_run(name, seed, 1.5)) for name in ("gelu", "relu") for seed in (1, 2)]
    for chosen, shared in ((records, {"n_layer", "max_steps"}), (records[:1], {"n_layer", "activation", "seed"})):
        results.save(tmp_path / "results.json", Results(Settings(), tuple(chosen)))
        values = json.loads((tmp_path / "results.json").read_text())
        assert shared <= values["common"]["config"].keys()
        assert values["common"]["data"] == chosen[0].data
        assert all(not shared & record["config"].keys() for record in values["records"])
        assert all("targets" not in record["documents"] for record in values["records"])
        for before, after in zip(chosen, results.load(tmp_path / "results.json").records, strict=True):
            assert (after.config, after.data, after.provenance) == (before.config, before.data, before.provenance)
            assert after.documents["targets"] == before.documents["targets"]
    longer = replace(records[3], config=records[3].config | {"data_dir": "other"}, data={"corpus_sha256": "c1", "more": 1})
    results.save(tmp_path / "results.json", Results(Settings(), (*records[:3], longer)))
    again = results.load(tmp_path / "results.json").records
    assert [list(record.data.items()) for record in again] == [list(r.data.items()) for r in (*records[:3], longer)]


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
    merged = merge(Settings(activations=("a", "b"), rates=(2.0,)), Settings(activations=("c", "a"), baseline="c", rates=(1.0,)))
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
        '{"settings": {}, "common": 1, "records": []}',
        '{"settings": {}, "common": {"surprise": {}}, "records": [{}]}',
        '{"settings": {}, "common": {"config": 1}, "records": [{"config": {}}]}',
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
    assert merge(two, one).rate_seeds == (1,)
    assert merge(none, two).rate_seeds == (1, 2)


def test_activation_and_seed_may_differ(make_run: Any) -> None:
    records = [read(make_run(activation, seed, 1.5)) for activation in ("gelu", "relu") for seed in (1, 2)]
    results.check_comparable(records, ())
    assert results.provenance_notes(records) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layer", 3),
        ("learning_rate", 1e-3),
        ("dtype", "float32"),
        ("eval_tokens", 100),
        ("mlp_init", "unit"),
        ("max_steps", 1000),
    ],
)
def test_any_other_field_is_refused_by_name_unless_varied(make_run: Any, field: str, value: Any) -> None:
    records = [read(make_run("gelu", 1, 1.5)), read(make_run("relu", 1, 1.5, **{field: value}))]
    with pytest.raises(ValueError, match=rf"differ in {field}: .* give it to --vary"):
        results.check_comparable(records, ())
    if field != "max_steps":  # it changes the data hash of the last step within one group
        results.check_comparable(records, (field,))


def test_bookkeeping_may_differ(make_run: Any) -> None:
    records = [read(make_run("gelu", 1, 1.5)), read(make_run("relu", 1, 1.5, keep_checkpoints=3, resume="never"))]
    assert records[0].config["keep_checkpoints"] != records[1].config["keep_checkpoints"]
    results.check_comparable(records, ())  # a difference that counted would be a ValueError


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"init_hash": "other"}, "differ in their initial weights outside the activation: init_hash init1 and other"),
        ({"data": {"corpus_sha256": "c1"}}, "differ in the data: corpus_sha256 'c0' and 'c1'"),
        ({"data": {"corpus_sha256": "c0"}, "val_rule": "spread evenly"}, "differ in the data: val_rule 'None' and 'spread"),
    ],
)
def test_hashes_are_compared(make_run: Any, run: dict[str, Any], message: str) -> None:
    records = [read(make_run("gelu", 1, 1.5)), read(make_run("relu", 1, 1.5, run=run))]
    with pytest.raises(ValueError, match=message):
        results.check_comparable(records, ())


def test_the_bytes_fed_are_compared_even_where_the_learning_rate_varies(make_run: Any) -> None:
    first, folder = read(make_run("gelu", 1, 1.5)), make_run("relu", 1, 1.5, learning_rate=1e-3)
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"1-500"', '"other"'))
    with pytest.raises(ValueError, match="differ in the bytes they were fed: data_hash 1-500 and other"):
        results.check_comparable([first, read(folder)], ("learning_rate",))


def test_a_varied_field_that_changes_no_bytes_and_no_weights_excuses_no_difference_in_them(make_run: Any) -> None:
    """Weight decay, as the learning rate: runs of one seed start from the same weights whatever its value."""
    records = [read(make_run("gelu", 1, 1.5)), read(make_run("gelu", 1, 1.5, weight_decay=0.3, run={"init_hash": "other"}))]
    with pytest.raises(ValueError, match="differ in their initial weights"):
        results.check_comparable(records, ("weight_decay",))
    records = [records[0], read(make_run("relu", 1, 1.5, n_layer=3, run={"init_hash": "other"}))]
    results.check_comparable(records, ("n_layer",))


def test_gated_and_plain_mlps_share_the_bytes_and_each_kind_its_initial_weights(make_run: Any) -> None:
    plain = read(make_run("gelu", 1, 1.5))
    gated = read(make_run("silu", 1, 1.5, mlp="gated", run={"init_hash": "gated"}))
    results.check_comparable([plain, gated], ())
    other = read(make_run("relu", 1, 1.5, mlp="gated", run={"init_hash": "other"}))
    with pytest.raises(ValueError, match="differ in their initial weights outside the activation: init_hash gated and other"):
        results.check_comparable([plain, gated, other], ())
    fed = replace(gated, data_hash="other")
    with pytest.raises(ValueError, match="differ in the bytes they were fed"):
        results.check_comparable([plain, fed], ())
    assert not results.same_run(plain.config | {"mlp": "gated"}, plain.config)


def test_one_precision_a_seed(make_run: Any) -> None:
    here, there = ({"hardware": {"device": name, "dtype": dtype}} for name, dtype in (("a", "bfloat16"), ("b", "float32")))
    records = [read(make_run("gelu", 1, 1.5, run=here)), read(make_run("relu", 1, 1.5, run=there))]
    with pytest.raises(ValueError, match="differ in precision: bfloat16 and float32, which dtype=auto is on their hardware"):
        results.check_comparable(records, ())
    results.check_comparable(records, ("dtype",))
    results.check_comparable([records[0], read(make_run("relu", 2, 1.5, run=there))], ())  # pairs are of one seed


def test_the_same_run_twice_is_refused(make_run: Any) -> None:
    record = read(make_run("gelu", 1, 1.5))
    with pytest.raises(ValueError, match="two runs of gelu:exact=false seed 1"):
        results.check_comparable([record, record], ())
    with pytest.raises(ValueError, match="no finished runs"):
        results.check_comparable([], ())


def test_same_run_sees_through_what_the_data_resolve(make_run: Any) -> None:
    finished = read(make_run("gelu", 1, 1.5)).config
    planned = finished | {"vocab_size": 0, "tokenizer": "", "activation": "gelu", "out_dir": "elsewhere"}
    assert results.same_run(planned, finished)
    for field, value in (("seed", 2), ("activation", "relu"), ("n_layer", 9), ("vocab_size", 300)):
        assert not results.same_run(planned | {field: value}, finished)


def test_notes_tell_of_code_and_machines(make_run: Any) -> None:
    runs: list[dict[str, Any]] = [{}, {"commit": "def", "dirty": True}, {"hardware": {"device": "gpu"}}]
    records = [read(make_run("gelu", seed, 1.5, run=run)) for seed, run in enumerate(runs)]
    notes = " ".join(results.provenance_notes(records))
    assert "2 commits: abc, def" in notes
    assert "uncommitted" in notes
    assert "2 different machines" in notes


def test_a_run_that_was_resumed_at_another_commit_is_told(make_run: Any) -> None:
    launches = [{"step": 250, "commit": "abc"}, {"step": 400, "commit": "def"}]
    records = [read(make_run("gelu", 1, 1.5, run={"resumed": launches})), read(make_run("gelu", 2, 1.5))]
    notes = results.provenance_notes(records)
    assert "The runs come from 2 commits: abc, def." in notes
    assert any(n.endswith(" began at commit abc and was resumed: abc from step 250, def from step 400.") for n in notes)
    assert not any("resumed" in note for note in results.provenance_notes(records[1:]))
