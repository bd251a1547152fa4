"""Losses by document add up to the evaluation, and shapes are those of the weights."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from comparison import measure
from comparison.record import read
from config.schema import Config
from data import shards
from faults.runs import rows
from runtime import checkpoint
from tests.runs import train_here


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
    measure.measure(folder)
    record = read(folder)
    # The first token is no target, so document 0, which is that token alone, has none and is left out.
    assert record.documents["targets"] == [99, 1, 599, 1234 - 700]
    assert record.documents["bytes"] == record.documents["targets"]
    loss = sum(record.documents["nats"]) / sum(record.documents["targets"])
    assert loss == pytest.approx(rows(config)[-1]["val_loss"], rel=1e-6)
    assert record.part("selects")[0] != record.part("reports")[0]
    assert sum(record.half("selects")["targets"]) == 20 * 32 - 15  # windows 0, 2, ... 38: the last one is short
    again = (folder / "measured.json").read_text()
    measure.measure(folder)
    assert (folder / "measured.json").read_text() == again


def test_what_is_measured_is_of_the_last_step_and_of_these_weights(small: Config) -> None:
    config = train_here(small, max_steps=6, lr_decay_steps=12, checkpoint_interval=6)
    folder = Path(config.out_dir)
    first = measure.read_measured(folder)
    assert measure.is_measured(folder)
    stale = (folder / "measured.json").read_text()
    train_here(config, max_steps=12)
    assert not measure.is_measured(folder)
    second = measure.read_measured(folder)  # trained further: measured again
    assert second.weights_sha256 != first.weights_sha256
    assert sum(second.documents["nats"]) / 1233 == pytest.approx(second.val_loss, rel=1e-5)
    lied = json.loads(stale) | {"step": 12}
    (folder / "measured.json").write_text(json.dumps(lied))  # of other weights
    assert measure.read_measured(folder).documents == second.documents
    (folder / "checkpoints" / "step_00000012").rename(folder / "checkpoints" / "step_00000006")
    with pytest.raises(ValueError, match="it stopped before its checkpoint of step 12 was written"):
        measure.read_measured(folder)
    with pytest.raises(ValueError, match="one of the steps"):
        measure.measure(folder)


def test_a_document_has_the_loss_of_its_own_tokens(small: Config, documents_dir: Path) -> None:
    config = train_here(small, data_dir=str(documents_dir))
    model, resolved = checkpoint.load_model(config.out_dir)
    found = measure.by_document(model, resolved, documents_dir)
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
    measure.measure(Path(config.out_dir))
    record = read(Path(config.out_dir))
    assert list(record.shapes) == [f"transformer.h.{i}.mlp.act" for i in range(2)]
    table = record.shapes["transformer.h.1.mlp.act"]
    assert list(table) == ["x", "0", "3", "6", "9", "12"]
    act = model.get_submodule("transformer.h.1.mlp.act")
    x = torch.tensor(table["x"])[:, None].expand(-1, act.channels)
    assert table["12"] == pytest.approx(act(x)[:, 0].tolist(), rel=1e-4, abs=1e-5)
    row = next(row for row in rows(config) if row["step"] == 6 and "transformer.h.1.mlp.act.second_moment" in row)
    a, s = [row[f"transformer.h.1.mlp.act.coefficients.{k}"] for k in range(4)], float(act.input_std)
    z = np.array(table["x"]) / s
    by_hand = s * (a[0] + a[1] * z + a[2] * (z**2 - 1) / 2 + a[3] * (z**3 - 3 * z) / 6)
    assert table["6"] == pytest.approx(by_hand.tolist(), rel=1e-5, abs=1e-6)
    assert table["0"] != table["6"] != table["12"]
    assert record.gains["transformer.h.0.mlp.act"]["step"] == [0, 3, 6, 9, 12]
    layer = "transformer.h.1.mlp.act"
    variance = row[f"{layer}.input_std"] ** 2 + row[f"{layer}.input_mean"] ** 2
    assert record.gains[layer]["second_moment"][2] == pytest.approx(row[f"{layer}.second_moment"] / variance)
    assert record.gains[layer]["slope"][2] == row[f"{layer}.slope_moment"]


def test_fixed_activations_have_no_shapes(small: Config) -> None:
    config = train_here(small, activation="gelu")
    measure.measure(Path(config.out_dir))
    assert json.loads((Path(config.out_dir) / "measured.json").read_text())["shapes"] == {}


def test_zero_shot_needs_the_same_tokenizer(small: Config, documents_dir: Path, tmp_path: Path) -> None:
    config = train_here(small)
    model, resolved = checkpoint.load_model(config.out_dir)
    here = measure.by_document(model, resolved, documents_dir)
    assert sum(here["targets"]) == 1233
    with pytest.raises(ValueError, match="was written with tokenizer 'bytes', the model reads 'gpt2'"):
        measure.by_document(model, dataclasses.replace(resolved, tokenizer="gpt2"), documents_dir)
    with pytest.raises(ValueError, match="does not exist"):
        measure.by_document(model, resolved, tmp_path / "none")


def test_runs_of_train_py_are_measured_when_they_are_read(
    small: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_here(small)
    assert measure.read_measured(Path(config.out_dir)).documents
    other = Path(train_here(small, out_dir=str(tmp_path / "bare")).out_dir)
    (other / "checkpoints").rename(other / "elsewhere")
    caplog.set_level("INFO")
    assert not measure.read_measured(other).documents
    assert "weights or data are gone" in caplog.text
