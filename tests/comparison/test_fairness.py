"""Unfair pairs are refused, and the message names the difference."""

from typing import Any

import pytest

from comparison import fairness
from comparison.record import read


def test_activation_and_seed_may_differ(make_run: Any) -> None:
    records = [read(make_run(activation, seed, 1.5)) for activation in ("gelu", "relu") for seed in (1, 2)]
    fairness.check(records, ())
    assert fairness.notes(records) == []


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
        fairness.check(records, ())
    if field != "max_steps":  # it changes the data hash of the last step within one group
        fairness.check(records, (field,))


def test_bookkeeping_may_differ(make_run: Any) -> None:
    records = [read(make_run("gelu", 1, 1.5)), read(make_run("relu", 1, 1.5, keep_checkpoints=3, resume="never"))]
    assert records[0].config["keep_checkpoints"] != records[1].config["keep_checkpoints"]
    fairness.check(records, ())  # a difference that counted would be a ValueError


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
        fairness.check(records, ())


def test_the_bytes_fed_are_compared_even_where_the_learning_rate_varies(make_run: Any) -> None:
    first, folder = read(make_run("gelu", 1, 1.5)), make_run("relu", 1, 1.5, learning_rate=1e-3)
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"1-500"', '"other"'))
    with pytest.raises(ValueError, match="differ in the bytes they were fed: data_hash 1-500 and other"):
        fairness.check([first, read(folder)], ("learning_rate",))


def test_a_varied_field_that_changes_no_bytes_and_no_weights_excuses_no_difference_in_them(make_run: Any) -> None:
    """Weight decay, as the learning rate: runs of one seed start from the same weights whatever its value."""
    records = [read(make_run("gelu", 1, 1.5)), read(make_run("gelu", 1, 1.5, weight_decay=0.3, run={"init_hash": "other"}))]
    with pytest.raises(ValueError, match="differ in their initial weights"):
        fairness.check(records, ("weight_decay",))
    records = [records[0], read(make_run("relu", 1, 1.5, n_layer=3, run={"init_hash": "other"}))]
    fairness.check(records, ("n_layer",))


def test_one_precision_a_seed(make_run: Any) -> None:
    here, there = ({"hardware": {"device": name, "dtype": dtype}} for name, dtype in (("a", "bfloat16"), ("b", "float32")))
    records = [read(make_run("gelu", 1, 1.5, run=here)), read(make_run("relu", 1, 1.5, run=there))]
    with pytest.raises(ValueError, match="differ in precision: bfloat16 and float32, which dtype=auto is on their hardware"):
        fairness.check(records, ())
    fairness.check(records, ("dtype",))
    fairness.check([records[0], read(make_run("relu", 2, 1.5, run=there))], ())  # pairs are of one seed


def test_the_same_run_twice_is_refused(make_run: Any) -> None:
    record = read(make_run("gelu", 1, 1.5))
    with pytest.raises(ValueError, match="two runs of gelu:exact=false seed 1"):
        fairness.check([record, record], ())
    with pytest.raises(ValueError, match="no finished runs"):
        fairness.check([], ())


def test_same_run_sees_through_what_the_data_resolve(make_run: Any) -> None:
    finished = read(make_run("gelu", 1, 1.5)).config
    planned = finished | {"vocab_size": 0, "tokenizer": "", "activation": "gelu", "out_dir": "elsewhere"}
    assert fairness.same_run(planned, finished)
    for field, value in (("seed", 2), ("activation", "relu"), ("n_layer", 9), ("vocab_size", 300)):
        assert not fairness.same_run(planned | {field: value}, finished)


def test_notes_tell_of_code_and_machines(make_run: Any) -> None:
    runs: list[dict[str, Any]] = [{}, {"commit": "def", "dirty": True}, {"hardware": {"device": "gpu"}}]
    records = [read(make_run("gelu", seed, 1.5, run=run)) for seed, run in enumerate(runs)]
    notes = " ".join(fairness.notes(records))
    assert "2 commits: abc, def" in notes
    assert "uncommitted" in notes
    assert "2 different machines" in notes
