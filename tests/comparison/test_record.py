"""A record is what the folder says, and survives the way through JSON; anything else is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comparison.record import Record, from_json, is_finished, part_of, read, to_json


def test_record_of_a_folder(make_run: Any) -> None:
    record = read(make_run("gelu", 7, 1.5))
    assert (record.activation, record.seed, record.val_loss) == ("gelu:exact=false", 7, 1.5)
    assert record.data_hash == "7-500"
    assert record.init_hash == "init7"
    assert record.tokens_per_step == 12 * 128
    assert record.evaluations["step"] == list(range(0, 501, 50))
    assert record.tokens_curve()[-1] == 500 * 12 * 128
    assert (record.tokens_per_second, record.ms_per_step) == (1e4, 40.0)
    assert sum(record.documents["nats"]) / sum(record.documents["targets"]) == pytest.approx(1.5)


def test_the_parts_of_the_documents_make_the_whole(make_run: Any) -> None:
    record = read(make_run("gelu", 1, 1.5))
    targets = [sum(record.documents["targets"][first::2]) for first in (0, 1)]
    losses = [record.part(which)[0] for which in ("selects", "reports")]
    assert np.dot(losses, targets) / sum(targets) == pytest.approx(1.5)
    assert record.part("reports")[1] == pytest.approx(record.part("reports")[0] / np.log(2))  # one byte a token
    with pytest.raises(ValueError, match="too little validation text"):
        part_of({"nats": [], "targets": [], "bytes": []})


def test_every_other_window_of_all_documents_selects_a_rate_where_it_is_known(make_run: Any) -> None:
    record = read(make_run("gelu", 1, 1.5))
    assert not record.selects_by_window
    selecting = {f"selecting_{name}": [value / 4 for value in values] for name, values in record.documents.items()}
    record.documents.update(selecting)
    assert record.selects_by_window
    selects, reports = (record.half(which)["targets"] for which in ("selects", "reports"))  # type: ignore[arg-type]
    assert selects == [value / 4 for value in record.documents["targets"]]
    assert reports == [value * 3 / 4 for value in record.documents["targets"]]


def test_what_was_evaluated_is_told_where_older_runs_did_not(make_run: Any) -> None:
    folder = make_run("gelu", 1, 1.5, eval_tokens=1000, run={"data": {"corpus_sha256": "c0", "val_targets": 1000}})
    assert read(folder).data["val_rule"] == "from the start"
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"val_rule": "spread evenly", "num_targets": 1000}))
    record = read(folder)
    assert record.data["val_rule"] == "spread evenly"
    values = to_json(record)
    del values["config"]["layer_norm_epsilon"]  # a field that came later: its default is what runs did before
    assert from_json(values, "here").config == record.config


def test_json_keeps_losses_to_seven_digits_and_the_configuration_exactly(make_run: Any) -> None:
    record = read(make_run("hermite:degree=3", 1, 1.23456789))
    record.config["min_lr"] = 0.1 * 3
    again = from_json(json.loads(json.dumps(to_json(record))), "here")
    assert again.val_loss == pytest.approx(record.val_loss, rel=1e-6)
    assert to_json(again) == to_json(record)
    assert again.config == record.config
    assert again.shapes.keys() == record.shapes.keys()


def test_long_runs_are_thinned_to_means_of_equal_stretches(make_run: Any) -> None:
    folder = make_run("gelu", 1, 1.5, measured=False)
    rows = [{"step": step, "train_loss": float(step % 2)} for step in range(1, 1001)]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 500, "val_loss": 1.0, "data_hash": "x", "elapsed_s": 1}])
    )
    record = read(folder)
    assert record.training["train_loss"] == [0.5] * 100
    assert np.mean(record.training["step"]) == pytest.approx(500.5)


def test_unfinished_and_missing_runs_are_named(make_run: Any, tmp_path: Path) -> None:
    folder = make_run("gelu", 1, 1.5)
    assert is_finished(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert not is_finished(folder)
    with pytest.raises(ValueError, match=r"is not finished \(step 500 of 500\); go on with it"):
        read(folder)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        read(tmp_path)
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps({"step": 500, "val_loss": None})]) + "\n")
    with pytest.raises(ValueError, match="not finite"):
        read(folder)


def test_documents_of_other_weights_or_tokens_are_refused(make_run: Any) -> None:
    folder = make_run("gelu", 1, 1.5)
    measured = json.loads((folder / "measured.json").read_text())
    for share, refused in ((1e-4, False), (-1e-2, True), (1e-2, True), (float("nan"), True)):
        nats = [value * (1 + share) for value in measured["documents"]["nats"]]
        (folder / "measured.json").write_text(json.dumps(measured | {"documents": measured["documents"] | {"nats": nats}}))
        if refused:
            with pytest.raises(ValueError, match=r"its documents have a loss of .* and its last evaluation 1\.5"):
                read(folder)
        else:
            assert read(folder).documents["nats"] == nats
    stale = measured | {"step": 250, "documents": {"nats": [9.0], "targets": [1.0], "bytes": [1.0]}}
    (folder / "measured.json").write_text(json.dumps(stale))
    assert read(folder).documents == {}  # of the run before it was trained further


def test_a_run_without_hashes_cannot_be_checked(make_run: Any) -> None:
    with pytest.raises(ValueError, match="records no init_hash"):
        read(make_run("gelu", 1, 1.5, run={"init_hash": None}))


@pytest.mark.parametrize(
    "change",
    [
        {"surprise": 1},
        {"config": {"activation": "gelu"}},
        {"config": 3},
        {"evaluations": {"step": [1], "val_loss": ["nan"]}},
        {"evaluations": {"step": [1, 2], "val_loss": [1.0]}},
        {"documents": []},
        {"gains": {"layer": [1.0]}},
    ],
)
def test_records_of_strangers_are_validated(make_run: Any, change: dict[str, Any]) -> None:
    good = to_json(read(make_run("gelu", 1, 1.5)))
    assert isinstance(from_json(good, "here"), Record)
    with pytest.raises(ValueError, match="here: not the record of a run"):
        from_json(good | change, "here")
