"""The loop: it learns, its steps are functions of (seed, step), and a run that stops is the run that never stopped."""

import dataclasses
import errno
import io
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from config.schema import Config
from data.shards import file_sha256
from model import GPT
from runtime import checkpoint
from tests.activations.toy import shown
from tests.processes import reached, trained, trainers
from tests.runs import ROOT, arguments, assert_same, free_port, launch, metrics, rows, train_here, weights


def test_loss_falls_and_the_folder_holds_what_the_contract_says(small: Config) -> None:
    config = train_here(small, max_steps=30)
    found = rows(config)
    evaluations = [row for row in found if "val_loss" in row]
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"] - 0.5
    assert [row["step"] for row in evaluations] == [0, 6, 12, 18, 24, 30]
    steps = [row for row in found if "train_loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 31))
    assert {"train_loss", "lr", "grad_norm", "tokens", "tokens_per_second", "data_hash"} <= steps[0].keys()
    assert steps[-1]["tokens"] == 30 * 12 * 32
    out = Path(config.out_dir)
    best = (out / "checkpoints" / "best").read_text().strip()
    assert sorted(p.name for p in (out / "checkpoints" / best).iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
        "state.pt",
    ]
    assert json.loads((out / "config.json").read_text())["tokenizer"] == "bytes"
    record = json.loads((out / "run.json").read_text())
    assert {
        "commit",
        "dirty",
        "command",
        "hardware",
        "config_hash",
        "init_hash",
        "parameters",
        "flops_per_token",
    } <= record.keys()


def test_a_disk_that_fails_ends_in_one_line(
    small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(checkpoint, "save", full)
    assert train.main([str(ROOT / "config" / "tiny.py"), *arguments(small)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("train.py: No space left on device (model.safetensors); once that is put right")
    record = json.loads((Path(small.out_dir) / "run.json").read_text())
    assert "nats" not in record  # it failed at step 6 of 12


class OnFullDisk(io.FileIO):
    """A file of which nothing reaches the disk."""

    def write(self, content: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("name", "code"), [(".lock", 2), ("metrics.jsonl", 1), ("run.json", 2), ("config.json", 2), ("best", 1)]
)
def test_a_full_disk_ends_in_one_line_whatever_is_written(
    small: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    """From the flush, and again from the close, of each file of a run's folder, under its own or its temporary name."""
    opened = io.open

    def full(path: Path | str, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if mode[0] == "r" or not f"{Path(path).name}.".startswith((f"{name}.", f".{name}.")):
            return opened(path, mode, *arguments, **named)
        raw = OnFullDisk(path, mode.replace("b", ""))
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding="utf-8")

    monkeypatch.setattr(io, "open", full)  # pathlib's
    monkeypatch.setattr("runtime.log.open", full, raising=False)
    assert train.main([str(ROOT / "config" / "tiny.py"), *arguments(small)]) == code
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py")]
    assert len(said) == 1
    assert said[0].startswith("train.py: No space left on device")


def test_the_record_is_closed_before_the_last_checkpoint(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = checkpoint.save

    def watch(out_dir: Path, step: int, *rest: object) -> Path:
        record = json.loads((out_dir / "run.json").read_text())
        assert ("nats" in record and "peak_memory_bytes" in record) == (step == 12)
        return whole(out_dir, step, *rest)

    monkeypatch.setattr(checkpoint, "save", watch)
    train_here(small)


def test_same_seed_same_run_and_another_seed_another(small: Config, tmp_path: Path) -> None:
    first = train_here(small)
    assert_same(first, train_here(small, out_dir=str(tmp_path / "again")))
    other = train_here(small, out_dir=str(tmp_path / "other"), seed=1)
    assert metrics(other)[1]["data_hash"] != metrics(first)[1]["data_hash"]


def test_recomputing_changes_no_bit_of_a_run(small: Config, tmp_path: Path) -> None:
    config = train_here(small, max_steps=4, lr_decay_steps=4, dropout=0.1)
    assert_same(config, train_here(config, recompute="blocks", out_dir=str(tmp_path / "again")))


def test_two_activations_see_the_same_bytes_from_the_same_weights(small: Config, tmp_path: Path) -> None:
    hermite = train_here(small, dropout=0.1)
    gelu = train_here(small, dropout=0.1, activation="gelu", out_dir=str(tmp_path / "gelu"))
    assert [row["data_hash"] for row in rows(hermite)] == [row["data_hash"] for row in rows(gelu)]
    records = [json.loads((Path(c.out_dir) / "run.json").read_text()) for c in (hermite, gelu)]
    assert records[0]["init_hash"] == records[1]["init_hash"]
    assert records[0]["activation_init_hash"] != records[1]["activation_init_hash"]


@pytest.mark.parametrize("micro_batch_size", [1, 3, 12])
def test_the_micro_batch_changes_rounding_alone(small: Config, tmp_path: Path, micro_batch_size: int) -> None:
    first = train_here(small)
    second = train_here(small, micro_batch_size=micro_batch_size, out_dir=str(tmp_path / "other"))
    for a, b in zip(metrics(first), metrics(second), strict=True):
        assert a["data_hash"] == b["data_hash"]
        loss = "val_loss" if "val_loss" in a else "train_loss"
        assert a[loss] == pytest.approx(b[loss], rel=1e-4)


def test_evaluation_between_steps_changes_nothing(small: Config, tmp_path: Path) -> None:
    often = train_here(small, eval_interval=1, dropout=0.2)
    rarely = train_here(small, eval_interval=12, dropout=0.2, out_dir=str(tmp_path / "rarely"))
    a, b = weights(often, 12), weights(rarely, 12)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "muon", "mlp": "gated", "activation": "hermite:degree=3,per=channel", "bias": True},
        {"mup_base_width": 16, "mlp": "gated"},
        {"activation": "fourier:degree=1,per=model"},
        {"activation": "hermite:degree=2;spline:knots=4", "optimizer": "muon"},
    ],
    ids=["adamw", "muon", "mup", "one set for all layers", "by depth"],
)
def test_resume_in_process_is_exact_with_dropout_and_a_torn_row(small: Config, tmp_path: Path, changes: dict[str, Any]) -> None:
    small = dataclasses.replace(small, **changes)
    whole = train_here(small, dropout=0.1, checkpoint_interval=1)
    parts = dataclasses.replace(small, dropout=0.1, out_dir=str(tmp_path / "parts"), lr_decay_steps=12, checkpoint_interval=1)
    train_here(parts, max_steps=7)
    with open(Path(parts.out_dir) / "metrics.jsonl", "a") as file:  # what a crash after the checkpoint leaves
        file.write('{"step": 8, "train_loss": 1.0}\n{"step": 9, "tra')
    parts = train_here(parts, max_steps=12)
    parts_metrics = [row for row in metrics(parts) if not ("val_loss" in row and row["step"] == 7)]  # a run's end evaluates
    assert parts_metrics == metrics(whole)
    a, b = weights(whole, 12), weights(parts, 12)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def defaults(small: Config) -> Config:
    """train.py's defaults (bf16 where there is any, compile, prefetch, accumulation) for a run that a signal can meet."""
    return dataclasses.replace(small, dtype="auto", compile=True, n_layer=1, micro_batch_size=2, max_steps=40, eval_interval=10)


def test_a_signal_and_a_resume_leave_no_trace(defaults: Config, tmp_path: Path) -> None:
    """Stopped after an evaluation by a signal to one of three processes, resumed; the next test is of compiled ones."""
    defaults = dataclasses.replace(defaults, compile=False)
    whole = dataclasses.replace(defaults, out_dir=str(tmp_path / "whole"))
    trained(whole, 3)
    stopped = trainers(defaults, 3)
    stopped[0].until(reached(defaults, 11), "step 11")
    stopped[-1].send(signal.SIGTERM)
    assert [child.finish() for child in stopped] == [143] * 3
    stopped_at(defaults, stopped[0].said)
    assert_same(whole, trained(defaults, 3))


def test_the_same_through_torchrun(defaults: Config, tmp_path: Path) -> None:
    """Two processes, compiled, as users start and stop them, against two that were never stopped."""
    whole = trained(dataclasses.replace(defaults, out_dir=str(tmp_path / "whole")), 2)
    stopped = launch(defaults, 2)
    stopped.send(signal.SIGTERM, at_step=11)
    code, errors = stopped.finish()
    assert code == 1, errors  # whatever its workers say
    stopped_at(defaults, errors)
    assert launch(defaults, 2).finish()[0] == 0
    assert_same(whole, defaults)


def stopped_at(config: Config, said: str) -> None:
    """It said at which step, after the evaluation and before the end, and that is where it stopped."""
    found = re.search(r"SIGTERM: step (\d+) is finished", said)
    assert found, said
    assert 11 <= int(found[1]) < config.max_steps
    assert max(row["step"] for row in rows(config)) == int(found[1])


def test_another_number_of_processes_sees_the_same_data(small: Config, tmp_path: Path) -> None:
    """One process, then two agents of one process each, against one process alone: equal data, losses within rounding."""
    alone = train_here(small)
    mixed = dataclasses.replace(small, micro_batch_size=3, out_dir=str(tmp_path / "mixed"), lr_decay_steps=12)
    train_here(mixed, max_steps=5)
    nodes = ("--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{free_port()}", "--rdzv_id=test")
    agents = [launch(mixed, torchrun=nodes, max_steps=12) for _ in range(2)]
    for agent in agents:
        code, errors = agent.finish()
        assert code == 0, errors
    a = {row["step"]: row for row in metrics(alone) if "train_loss" in row}
    b = {row["step"]: row for row in metrics(mixed) if "train_loss" in row}
    assert a.keys() == b.keys()
    for step in a:
        assert a[step]["data_hash"] == b[step]["data_hash"]
        assert a[step]["train_loss"] == pytest.approx(b[step]["train_loss"], rel=1e-4)


def test_mup_at_its_base_width_trains_the_standard_model_to_the_bit(small: Config, tmp_path: Path) -> None:
    standard = train_here(small)
    mup = train_here(small, mup_base_width=small.n_embd, out_dir=str(tmp_path / "mup"))
    assert_same(standard, mup)


@pytest.mark.parametrize("processes", [2, 3])
def test_muon_is_the_same_with_any_number_of_processes(small: Config, tmp_path: Path, processes: int) -> None:
    """Each steps along the exchanged gradient of all: they end where one process ends, but for rounding.

    Muon rounds its direction to bfloat16, so that a last bit of a gradient may move a weight by 0.4 % of a step.
    """
    small = dataclasses.replace(small, optimizer="muon", micro_batch_size=2, grad_clip=0.5)
    alone = train_here(small)
    several = trained(dataclasses.replace(small, out_dir=str(tmp_path / "several")), processes)
    for a, b in zip(metrics(alone), metrics(several), strict=True):
        loss = "val_loss" if "val_loss" in a else "train_loss"
        assert a["data_hash"] == b["data_hash"]
        assert a[loss] == pytest.approx(b[loss], rel=1e-3)
    start = GPT(small.gpt(257), small.seed).gpt2_state_dict()
    first, second = weights(alone, 12), weights(several, 12)
    for name, end in first.items():
        assert (second[name] - end).norm() <= 0.05 * (end - start[name]).norm(), name


def test_an_activation_of_an_own_file_goes_on_only_as_it_was(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(shown("docs/activations.md", "Add one"))
    config = train_here(small, activation=f"{file}:Swish,per=channel", max_steps=6)
    out = Path(config.out_dir)
    digest = file_sha256(file)
    folder = checkpoint.find(out, "last")
    for path in (out / "config.json", folder / "config.json", out / "run.json"):
        assert json.loads(path.read_text())["activation"] == f"{file}@{digest}:Swish:per=channel"
    model, _ = checkpoint.load_model(out, "last")
    assert model.transformer.h[0].mlp.act.beta.shape == (4 * config.n_embd, 1)
    text = file.read_text()
    file.write_text(text.replace("z * torch", "2 * z * torch"))
    with pytest.raises(ValueError, match="has changed since"):
        checkpoint.load_model(out, "last")
    further = [*arguments(dataclasses.replace(config, max_steps=12, lr_decay_steps=6, activation=f"{file}:Swish,per=channel"))]
    assert train.main([str(ROOT / "config" / "tiny.py"), *further]) == 2
    said = capsys.readouterr().err
    assert f"activation was '{file}@{digest}" in said
    assert "to go on type --activation" in said
    file.write_text(text)
    train_here(config, activation=f"{file}:Swish,per=channel", max_steps=12, lr_decay_steps=6)


def test_no_code_is_run_from_a_runs_folder(small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger's run that brings its activation along, with the right SHA-256."""
    out = Path(train_here(small, max_steps=6).out_dir)
    file = out / "evil.py"
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    for folder in (out, checkpoint.find(out, "last")):
        values = json.loads((folder / "config.json").read_text())
        for named in (f"{file}@{file_sha256(file)}:Swish", f"{file}:Swish"):
            (folder / "config.json").write_text(json.dumps(values | {"activation": named}))
            (folder / "SHA256SUMS").unlink(missing_ok=True)
            with pytest.raises(ValueError, match=r"no code is run from there|without its SHA-256"):
                checkpoint.read_config(folder)
    with pytest.raises(ValueError, match=r"no code is run from there|without its SHA-256"):
        checkpoint.load_model(out, "last")
    mine = arguments(dataclasses.replace(small, activation=f"{file}:Swish"))
    assert train.main([str(ROOT / "config" / "tiny.py"), *mine]) == 2
    assert "no code is run from there" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_help_into_a_pipe_that_closes_is_no_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert train.main([str(ROOT / "config" / "tiny.py"), "--help"]) == 0
        closed.flush()
    assert capsys.readouterr().err == ""
