"""A record is what the folder says and survives JSON; losses by document add up, and shapes are those of the weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comparison.judge import summarise
from comparison.record import (
    Record,
    from_json,
    is_finished,
    is_measured,
    measure,
    read,
    read_measured,
    to_json,
)
from comparison.results import Results, Settings
from config.schema import Config
from data import shards
from evaluation.documents import by_document, part_of
from runtime import checkpoint
from tests.runs import rows, train_here


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


def test_launches_that_resumed_a_run_are_read(make_run: Any) -> None:
    later = {"step": 250, "commit": "def", "dirty": False, "hardware": {"device": "cpu"}}
    record = read(make_run("gelu", 1, 1.5, run={"resumed": [later | {"command": ["train.py"]}]}))
    assert [launch["commit"] for launch in record.launches] == ["abc", "def"]
    assert record.provenance["resumed"] == [later]
    assert "resumed" not in read(make_run("gelu", 2, 1.5, run={"resumed": []})).provenance
    assert from_json(to_json(record), "results.json").provenance == record.provenance


def test_a_pause_of_the_machine_is_no_cost(make_run: Any) -> None:
    """Half an hour in which the process was stopped lies in one row's time, and in `elapsed_s` from there on."""
    folders = [make_run("gelu", 1, 1.5), make_run("relu", 1, 1.4)]
    before = tuple(map(read, folders))
    path = folders[1] / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for row in found:
        if row["step"] == 250 and "train_loss" in row:
            row |= {"ms_per_step": row["ms_per_step"] + 1.8e6, "tokens_per_second": 1e4 * 40 / 1.8e6}
        if row["step"] >= 250 and "elapsed_s" in row:
            row["elapsed_s"] += 1800
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    after = tuple(map(read, folders))
    assert after[1].evaluations["elapsed_s"][-1] > 70 * before[1].evaluations["elapsed_s"][-1]
    costs = [(record.ms_per_step, record.tokens_per_second) for records in (before, after) for record in records]
    assert costs == [(40.0, 1e4)] * 4
    contrasts = [summarise(Results(Settings(), records)).contrasts for records in (before, after)]
    assert contrasts[0] == contrasts[1]
    assert contrasts[0][0].seconds_ratio == contrasts[0][0].tokens_ratio is not None


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


def write_meta(data_dir: Path, offsets: list[int]) -> None:
    """A meta.json for the shards of the `data_dir` fixture, with these documents."""
    tokens = {split: len(shards.open_split(data_dir, split)) for split in ("train", "val")}
    files = {path.name: shards.file_sha256(path) for path in sorted(data_dir.glob("*.bin"))}
    shards.write_meta(
        data_dir,
        shards.Meta(
            tokenizer="bytes", vocab_size=257, tokens=tokens, bytes=tokens, documents={"train": 1, "val": len(offsets)},
            val_document_offsets=offsets, source="test", revision="", corpus_sha256="0" * 64, shards=files,
        ),
    )  # fmt: skip


@pytest.fixture
def documents_dir(data_dir: Path, tmp_path: Path) -> Path:
    """The same shards with documents that windows of 32 cut."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for path in data_dir.glob("*.bin"):
        (folder / path.name).write_bytes(path.read_bytes())
    write_meta(folder, [0, 1, 100, 101, 700])
    return folder


def test_documents_add_up_to_the_evaluation(small: Config, documents_dir: Path) -> None:
    config = train_here(small, data_dir=str(documents_dir), telemetry_interval=3)
    folder = Path(config.out_dir)
    measure(folder)
    record = read(folder)
    # The first token is no target, so document 0, which is that token alone, has none and is left out.
    assert record.documents["targets"] == [99, 1, 599, 1234 - 700]
    assert record.documents["bytes"] == record.documents["targets"]
    loss = sum(record.documents["nats"]) / sum(record.documents["targets"])
    assert loss == pytest.approx(rows(config)[-1]["val_loss"], rel=1e-6)
    assert record.part("selects")[0] != record.part("reports")[0]
    assert sum(record.half("selects")["targets"]) == 20 * 32 - 15  # windows 0, 2, ... 38: the last one is short
    again = (folder / "measured.json").read_text()
    measure(folder)
    assert (folder / "measured.json").read_text() == again


def test_what_is_measured_is_of_the_last_step_and_of_these_weights(small: Config) -> None:
    config = train_here(small, max_steps=6, lr_decay_steps=12, checkpoint_interval=6)
    folder = Path(config.out_dir)
    first = read_measured(folder)
    assert is_measured(folder)
    stale = (folder / "measured.json").read_text()
    train_here(config, max_steps=12)
    assert not is_measured(folder)
    second = read_measured(folder)  # trained further: measured again
    assert second.weights_sha256 != first.weights_sha256
    assert sum(second.documents["nats"]) / 1233 == pytest.approx(second.val_loss, rel=1e-5)
    lied = json.loads(stale) | {"step": 12}
    (folder / "measured.json").write_text(json.dumps(lied))  # of other weights
    assert read_measured(folder).documents == second.documents
    (folder / "checkpoints" / "step_00000012").rename(folder / "checkpoints" / "step_00000006")
    with pytest.raises(ValueError, match="it stopped before its checkpoint of step 12 was written"):
        read_measured(folder)
    with pytest.raises(ValueError, match="one of the steps"):
        measure(folder)


def test_a_document_has_the_loss_of_its_own_tokens(small: Config, documents_dir: Path) -> None:
    config = train_here(small, data_dir=str(documents_dir))
    model, resolved = checkpoint.load_model(config.out_dir)
    found = by_document(model, resolved, documents_dir)
    tokens = shards.open_split(documents_dir, "val").read(0, 129).astype(np.int64)
    windows = [torch.from_numpy(tokens[None, start : start + 33]) for start in range(0, 128, 32)]
    with torch.no_grad():
        nats = torch.cat([model(window[:, :-1], window[:, 1:], reduction="none")[0] for window in windows])
    # Position p of the stream is target p - 1: documents 1 and 100 begin at targets 0 and 99.
    assert found["nats"][0] == pytest.approx(float(nats[:99].sum()), rel=1e-5)
    assert found["nats"][1] == pytest.approx(float(nats[99]), rel=1e-5)


def test_shapes_go_from_the_initial_one_to_the_learned_one(small: Config) -> None:
    config = train_here(small, telemetry_interval=3, learning_rate=1e-2)
    model, _ = checkpoint.load_model(config.out_dir, "last")
    measure(Path(config.out_dir))
    record = read(Path(config.out_dir))
    assert list(record.shapes) == [f"transformer.h.{i}.mlp.act" for i in range(2)]
    table = record.shapes["transformer.h.1.mlp.act"]
    assert list(table) == ["x", "0", "3", "6", "9", "12", "density"]
    assert max(table["density"]) == 1
    assert record.flops_per_token == json.loads((Path(config.out_dir) / "run.json").read_text())["flops_per_token"]
    act = model.get_submodule("transformer.h.1.mlp.act")
    x = torch.tensor(table["x"])[:, None].expand(-1, act.channels)
    assert table["12"] == pytest.approx(act(x)[:, 0].tolist(), rel=1e-4, abs=1e-5)
    row = next(row for row in rows(config) if row["step"] == 6 and "transformer.h.1.mlp.act.second_moment" in row)
    a, s = [row[f"transformer.h.1.mlp.act.coefficients.{k}"] for k in range(4)], float(act.input_std)
    z = np.array(table["x"]) / s
    by_hand = s * (a[0] + a[1] * z + a[2] * (z**2 - 1) / 2 + a[3] * (z**3 - 3 * z) / 6)
    assert table["6"] == pytest.approx(by_hand.tolist(), rel=1e-5, abs=1e-6)
    assert table["0"] != table["6"] != table["12"]
    assert [record.coefficients["transformer.h.1.mlp.act"][f"coefficients.{k}"][2] for k in range(4)] == a
    assert record.gains["transformer.h.0.mlp.act"]["step"] == [0, 3, 6, 9, 12]
    layer = "transformer.h.1.mlp.act"
    variance = row[f"{layer}.input_std"] ** 2 + row[f"{layer}.input_mean"] ** 2
    assert record.gains[layer]["second_moment"][2] == pytest.approx(row[f"{layer}.second_moment"] / variance)
    assert record.gains[layer]["slope"][2] == row[f"{layer}.slope_moment"]


def test_fixed_activations_have_no_shapes(small: Config) -> None:
    config = train_here(small, activation="gelu")
    measure(Path(config.out_dir))
    assert json.loads((Path(config.out_dir) / "measured.json").read_text())["shapes"] == {}


def test_zero_shot_needs_the_same_tokenizer(small: Config, documents_dir: Path, tmp_path: Path) -> None:
    config = train_here(small)
    model, resolved = checkpoint.load_model(config.out_dir)
    here = by_document(model, resolved, documents_dir)
    assert sum(here["targets"]) == 1233
    with pytest.raises(ValueError, match="was written with tokenizer 'bytes', the model reads 'gpt2'"):
        by_document(model, dataclasses.replace(resolved, tokenizer="gpt2"), documents_dir)
    with pytest.raises(ValueError, match="does not exist"):
        by_document(model, resolved, tmp_path / "none")


def test_runs_of_train_py_are_measured_when_they_are_read(
    small: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_here(small)
    assert read_measured(Path(config.out_dir)).documents
    other = Path(train_here(small, out_dir=str(tmp_path / "bare")).out_dir)
    (other / "checkpoints").rename(other / "elsewhere")
    caplog.set_level("INFO")
    assert not read_measured(other).documents
    assert "weights or data are gone" in caplog.text
