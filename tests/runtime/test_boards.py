"""What the real libraries of W&B and TensorBoard hold of a run, read back from the files that they wrote; no server is asked.

Where a real one cannot be made to do what is asked, test_weights_and_biases.py and test_announce.py put stand-ins in its place.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config.schema import Config
from runtime import log
from runtime.log import grouped
from tests.runs import rows, train_here


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without the user's settings, and its service ended after the test."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path))  # ~/.netrc, where a key may lie
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.teardown()


def wandb_records(run: Path) -> list[Any]:
    """The records in the only .wandb file below `run`: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    data, at, records, parts = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block has no room for a record's head
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def values(items: Any) -> dict[str, Any]:
    """Keys and values of W&B's list of items; a nested key is joined by slashes."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.usefixtures("at_home")
def test_wandb_holds_the_rows_the_group_and_what_the_run_is(small: Config, caplog: pytest.LogCaptureFixture) -> None:
    config = train_here(small, wandb="offline", wandb_group="sweep", wandb_project="p", max_steps=3, telemetry_interval=3)
    assert not [record for record in caplog.records if "W&B" in record.getMessage()]
    records = wandb_records(Path(config.out_dir))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    record = json.loads((Path(config.out_dir) / "run.json").read_text())
    assert (run.run_group, run.project, run.run_id, run.display_name) == ("sweep", "p", record["wandb_id"], "run")
    told = values(run.config.update)
    assert told["data"]["corpus_sha256"] == record["data"]["corpus_sha256"]
    assert (told["parameters"], told["activation"], told["seed"]) == (record["parameters"], record["activation"], config.seed)
    found = [values(one.history.item) for one in records if one.WhichOneof("record_type") == "history"]
    named = [{name: value for name, value in row.items() if not name.startswith("_")} for row in found]
    merged = merge(named)
    expected = merge([grouped(row) for row in rows(config)])
    assert merged == expected
    for group in ("train/loss", "train/lr", "val/loss", "val/bits_per_byte"):
        assert group in merged[3]
    assert any(name.startswith("activations/transformer.h.1.mlp.act.") for name in merged[3])


def merge(found: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Rows of one step as one, as W&B joins them."""
    merged: dict[int, dict[str, Any]] = {}
    for row in found:
        merged.setdefault(row["step"], {}).update(row)
    return merged


@pytest.mark.usefixtures("at_home")
def test_wandb_that_cannot_begin_is_one_line(
    small: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has logged in; and a file lies where its folder should be."""
    Path(small.out_dir).mkdir()
    train_here(small, wandb="online", max_steps=2, resume="auto")
    (told,) = [record.getMessage() for record in caplog.records if "W&B" in record.getMessage()]
    assert told.startswith("W&B gets no more rows (init: ")
    assert told.endswith("; the run goes on, and metrics.jsonl has them all")
    assert [row["step"] for row in rows(small) if "train_loss" in row] == [1, 2]


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of every scalar, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}


def numbers(config: Config) -> dict[str, list[tuple[int, float]]]:
    """The same of metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows(config):
        for name, value in grouped(row).items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, []).append((row["step"], pytest.approx(value, rel=1e-6)))
    return found


@pytest.fixture
def tensorboard() -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")


@pytest.mark.usefixtures("tensorboard")
@pytest.mark.parametrize("lost", [["step_00000005"], ["step_00000003", "step_00000005"]])
def test_tensorboard_holds_each_step_of_a_resumed_run_once(small: Config, lost: list[str]) -> None:
    """What an earlier attempt wrote after the checkpoint is hidden: the resume takes these steps again, or begins anew."""
    settings: dict[str, Any] = {"tensorboard": True, "telemetry_interval": 3, "checkpoint_interval": 3, "lr_decay_steps": 6}
    train_here(small, **settings, max_steps=5, keep_checkpoints=9)
    for name in lost:
        shutil.rmtree(Path(small.out_dir) / "checkpoints" / name)
    config = train_here(small, **settings, max_steps=6)
    found = scalars(Path(config.out_dir))
    assert found == numbers(config)
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert {name.split("/")[0] for name in found} == {"train", "val", "activations"}


@pytest.mark.usefixtures("tensorboard")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["init", "log"])
def test_trouble_with_tensorboard_is_one_line(
    small: Config, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file where its folder should be; a disk that is full."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if where == "init":
        Path(small.out_dir).mkdir()
        (Path(small.out_dir) / "tensorboard").touch()
    else:
        monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    train_here(small, max_steps=3, tensorboard=True)
    (told,) = [record.getMessage() for record in caplog.records if "TensorBoard" in record.getMessage()]
    assert told.startswith(f"TensorBoard gets no more rows ({'init' if where == 'init' else ''}")
    assert [row["step"] for row in log.read(Path(small.out_dir) / "metrics.jsonl") if "train_loss" in row] == [1, 2, 3]
