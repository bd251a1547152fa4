"""A sweep goes on where it stopped: runs in results.json or in their folders are not trained again; one run in its process."""

import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from comparison import record, results, run
from comparison.launch import PARENT, Done, SweepInterruptedError, Tick
from comparison.plan import Job, Sweep, plan
from comparison.run import SweepProgress, steps_done
from config.schema import Config
from config.tiny import config as preset
from runtime.signals import STOP_SIGNALS
from tests.runs import ROOT, arguments

pytestmark = pytest.mark.usefixtures("undrawn")
TINY = Path(__file__).parents[2] / "config" / "tiny.py"


class Trainer:
    """A launcher whose runs end at once with the loss that `losses` gives, None: with exit code 1."""

    def __init__(self, finish_run: Any, losses: Any, stop_after: int = 99) -> None:
        self.finish_run, self.losses, self.stop_after = finish_run, losses, stop_after
        self.trained: list[str] = []

    def __call__(self, jobs: Sequence[Job], done: Done, tick: Tick) -> None:
        for job in jobs:
            if len(self.trained) == self.stop_after:
                raise SweepInterruptedError(STOP_SIGNALS[0])
            self.trained.append(job.name)
            tick([job])
            loss = self.losses(job.config)
            if loss is not None:
                self.finish_run(job.config, loss)
            done(job, int(loss is None), "it broke")


def sweep(tmp_path: Path, **changes: Any) -> Sweep:
    return plan(TINY, ["gelu", "relu"], 3, {}, tmp_path / "sweep", **changes)


def loss_of(config: Any) -> float:
    return 1.5 + 0.01 * (config.seed % 10) - 0.02 * (config.activation == "relu") + abs(config.learning_rate - 2e-3)


def test_all_runs_then_nothing_to_do(finish_run: Any, tmp_path: Path) -> None:
    trainer = Trainer(finish_run, loss_of)
    summary, failures = run.run(sweep(tmp_path), trainer)
    assert failures == 0
    assert summary is not None
    assert [arm.label for arm in summary.arms] == ["gelu", "relu"]
    assert trainer.trained[:2] == ["gelu-seed=1337", "relu-seed=1337"]  # paired from the first on
    assert len(trainer.trained) == 6
    assert (tmp_path / "sweep" / "report.html").is_file()
    shutil.rmtree(tmp_path / "sweep" / "gelu-seed=1337")  # results.json is enough
    again, _ = run.run(sweep(tmp_path), trainer)
    assert len(trainer.trained) == 6
    assert again is not None
    assert [c.interval.mean for c in again.contrasts] == pytest.approx([c.interval.mean for c in summary.contrasts], rel=1e-5)


def test_an_interrupted_sweep_goes_on(finish_run: Any, tmp_path: Path) -> None:
    first = Trainer(finish_run, loss_of, stop_after=4)
    with pytest.raises(SweepInterruptedError):
        run.run(sweep(tmp_path), first)
    assert len(results.load(tmp_path / "sweep" / "results.json").records) == 4
    (tmp_path / "sweep" / "results.json").unlink()  # folders are enough, too
    second = Trainer(finish_run, loss_of)
    run.run(sweep(tmp_path), second)
    assert len(second.trained) == 2
    assert not set(first.trained) & set(second.trained)


def test_more_seeds_and_activations_join_what_is_there(finish_run: Any, tmp_path: Path) -> None:
    trainer = Trainer(finish_run, loss_of)
    run.run(plan(TINY, ["gelu"], 2, {}, tmp_path / "sweep"), trainer)
    summary, _ = run.run(sweep(tmp_path), trainer)
    assert len(trainer.trained) == 6
    assert summary is not None
    assert summary.contrasts[0].seeds == (1337, 1338, 1339)


def test_finished_runs_of_another_sweep_are_taken_over(finish_run: Any, tmp_path: Path) -> None:
    trainer = Trainer(finish_run, loss_of)
    run.run(plan(TINY, ["gelu", "silu"], 3, {}, tmp_path / "other"), trainer)
    reused = results.gather([tmp_path / "other"]).records
    summary, _ = run.run(sweep(tmp_path), trainer, reused=reused)
    assert trainer.trained[6:] == ["relu-seed=1337", "relu-seed=1338", "relu-seed=1339"]
    assert summary is not None
    assert [arm.label for arm in summary.arms] == ["gelu", "relu"]  # silu is none of this sweep's
    assert len(results.load(tmp_path / "sweep" / "results.json").records) == 6


def test_a_failed_run_is_told_and_tried_again(finish_run: Any, tmp_path: Path) -> None:
    def broken(config: Any) -> float | None:
        return None if config.activation == "relu" and config.seed == 1338 else loss_of(config)

    summary, failures = run.run(sweep(tmp_path), Trainer(finish_run, broken))
    assert failures == 1
    assert summary is not None
    assert any("relu-seed=1338: exit code 1: it broke" in note for note in summary.notes)
    assert summary.contrasts[0].seeds == (1337, 1339)
    trainer = Trainer(finish_run, loss_of)
    summary, failures = run.run(sweep(tmp_path), trainer)
    assert trainer.trained == ["relu-seed=1338"]
    assert failures == 0
    assert summary is not None
    assert summary.notes == ()


def test_nothing_but_failures_is_no_report(finish_run: Any, tmp_path: Path) -> None:
    summary, failures = run.run(sweep(tmp_path), Trainer(finish_run, lambda config: None))
    assert (summary, failures) == (None, 6)


def test_an_arm_that_train_py_refuses_leaves_the_others_alone(finish_run: Any, tmp_path: Path) -> None:
    def launch(jobs: Sequence[Job], done: Done, tick: Tick) -> None:
        for job in jobs:
            if job.config.activation == "relu":
                done(job, 2, "train.py: too much memory")
            else:
                finish_run(job.config, 1.5)
                done(job, 0, "")

    summary, failures = run.run(sweep(tmp_path), launch)
    assert failures == 3
    assert summary is not None
    assert [arm.label for arm in summary.arms] == ["gelu"]
    report = (tmp_path / "sweep" / "report.md").read_text()
    (row,) = (line for line in report.splitlines() if line.startswith("| relu |"))
    assert row.startswith("| relu | failed: exit code 2: train.py: too much memory |")
    assert row.endswith("| 0, 3 failed |")


@pytest.mark.parametrize("diverged", ["relu", "gelu"])
def test_a_diverged_arm_ends_neither_the_sweep_nor_its_restart(finish_run: Any, tmp_path: Path, diverged: str) -> None:
    """The baseline among them: then nothing is compared, and the report says so."""

    def finish(config: Any, loss: float) -> Path:
        folder: Path = finish_run(config, loss)
        if config.activation.startswith(diverged):
            last = {"step": config.max_steps, "val_loss": None, "data_hash": "x", "elapsed_s": 1.0}
            with open(folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(last) + "\n")
        return folder

    trainer = Trainer(finish, loss_of)
    for _ in range(2):
        summary, failures = run.run(sweep(tmp_path), trainer)
        assert len(trainer.trained) == 6  # it would diverge again
        assert failures == 3
        assert summary is not None
        assert len(summary.arms) == 1
        assert [c.verdict for c in summary.contrasts] == []
        report = (tmp_path / "sweep" / "report.md").read_text()
        (row,) = (line for line in report.splitlines() if line.startswith(f"| {diverged} | failed"))
        assert row.endswith("| 0, 3 failed |")
    assert any("baseline gelu has no finished run" in note for note in summary.notes) == (diverged == "gelu")


def test_a_run_that_stopped_in_its_last_checkpoint_is_trained_to_its_end(finish_run: Any, tmp_path: Path) -> None:
    first = Trainer(finish_run, loss_of, stop_after=1)
    with pytest.raises(SweepInterruptedError):
        run.run(sweep(tmp_path), first)
    folder = tmp_path / "sweep" / "gelu-seed=1337"
    (tmp_path / "sweep" / "results.json").unlink()
    (folder / "measured.json").unlink()
    for steps, again in (([], True), ([250], True), ([250, preset.max_steps], False)):
        for step in steps:
            (folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)
        assert record.is_finished(folder) != again
        assert bool(record.unfinished(folder)) == (again and bool(steps))


@pytest.mark.parametrize(
    ("changes", "told"), [({"n_embd": 64}, "n_embd=192, this sweep has 64"), ({"eval_tokens": 9}, "eval_tokens=0")]
)
def test_another_configuration_in_the_folder_is_refused_before_anything_runs(
    finish_run: Any, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    trainer = Trainer(finish_run, loss_of)
    run.run(sweep(tmp_path), trainer)
    with pytest.raises(ValueError, match=told):
        run.run(plan(TINY, ["gelu", "relu"], 3, changes, tmp_path / "sweep"), trainer)
    (tmp_path / "sweep" / "results.json").unlink()
    checkpoints = tmp_path / "sweep" / "relu-seed=1338" / "checkpoints"
    (checkpoints / f"step_{preset.max_steps:08d}").mkdir(parents=True)
    with pytest.raises(ValueError, match=f"relu-seed=1338 holds a run with {told}"):
        run.run(plan(TINY, ["gelu", "relu"], 3, changes, tmp_path / "sweep"), trainer)
    with pytest.raises(ValueError, match="relu-seed=1338 holds a run with max_steps=1000, this sweep has 500"):
        run.run(plan(TINY, ["gelu", "relu"], 3, {"max_steps": 500}, tmp_path / "sweep"), trainer)
    assert len(trainer.trained) == 6


def test_a_sweep_made_longer_replaces_what_it_trains_further(finish_run: Any, tmp_path: Path) -> None:
    def finish(config: Any, loss: float) -> Path:
        shutil.rmtree(config.out_dir, ignore_errors=True)
        folder: Path = finish_run(config, loss)
        (folder / "checkpoints" / f"step_{config.max_steps:08d}").mkdir(parents=True)
        return folder

    trainer = Trainer(finish, loss_of)
    for steps in (500, 1000):
        longer = plan(TINY, ["gelu", "relu"], 2, {"max_steps": steps, "lr_decay_steps": 1000}, tmp_path / "sweep")
        run.run(longer, trainer)
    records = results.load(tmp_path / "sweep" / "results.json").records
    assert [r.config["max_steps"] for r in records] == [1000] * 4
    assert len(trainer.trained) == 8


def test_some_seeds_choose_the_rate_and_the_others_follow(finish_run: Any, tmp_path: Path) -> None:
    trainer = Trainer(finish_run, loss_of)
    summary, _ = run.run(sweep(tmp_path, rates=(1e-3, 2e-3, 4e-3), num_rate_seeds=1), trainer)
    assert sorted(trainer.trained[:6]) == sorted(
        f"{a}-lr={r}-seed=1337" for a in ("gelu", "relu") for r in ("0.001", "0.002", "0.004")
    )
    assert trainer.trained[6:] == [f"{a}-lr=0.002-seed={s}" for s in (1338, 1339) for a in ("gelu", "relu")]
    shutil.rmtree(tmp_path / "sweep" / "gelu-lr=0.001-seed=1337")
    run.run(sweep(tmp_path, rates=(1e-3, 2e-3, 4e-3), num_rate_seeds=1), trainer)
    assert len(trainer.trained) == 10  # rates and their min_lr are found again in results.json, to the bit
    assert summary is not None
    assert [arm.rate for arm in summary.arms] == [2e-3, 2e-3]
    assert [arm.seeds for arm in summary.arms] == [(1337, 1338, 1339)] * 2


def test_checkpoints_can_be_discarded(finish_run: Any, tmp_path: Path) -> None:
    def finish(config: Any, loss: float) -> Path:
        folder: Path = finish_run(config, loss)
        (folder / "checkpoints" / f"step_{preset.max_steps:08d}").mkdir(parents=True)
        return folder

    run.run(sweep(tmp_path), Trainer(finish, loss_of), keep_checkpoints=False)
    assert list((tmp_path / "sweep").glob("*/metrics.jsonl"))
    assert not list((tmp_path / "sweep").glob("*/checkpoints"))


TINY = Path(__file__).parents[2] / "config" / "tiny.py"


def test_steps_are_read_from_the_metrics_and_the_time_left_follows(
    finish_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    sweep = plan(TINY, ["gelu", "relu"], 2, {}, tmp_path)
    jobs = sweep.jobs(sweep.seeds, ())
    with SweepProgress(jobs) as bar:
        assert steps_done(jobs[0]) == 0
        finish_run(jobs[0].config, 1.5)
        assert steps_done(jobs[0]) == jobs[0].config.max_steps
        clock[0] = 60.0
        bar.tick(jobs[:1])
        bar.finished(jobs[0], "val_loss 1.5")
        clock[0] = 100.0
        for job in jobs[1:]:
            bar.finished(job, "val_loss 1.6")
    lines = [line.strip() for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.startswith("[")]
    assert lines[0] == "[1/4] gelu-seed=1337: val_loss 1.5; about 3 min left"
    assert lines[1] == "[2/4] relu-seed=1337: val_loss 1.6; about 2 min left"
    assert lines[3] == "[4/4] relu-seed=1338: val_loss 1.6"


def test_a_job_is_train_py_and_a_measure(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    monkeypatch.setattr(run.sys, "argv", [])
    argv = [str(ROOT / "config" / "tiny.py"), *arguments(small)]
    assert run.main(argv) == 0
    folder = Path(small.out_dir)
    assert json.loads((folder / "measured.json").read_text()).keys() == {"step", "weights_sha256", "documents", "shapes"}
    assert json.loads((folder / "run.json").read_text())["command"] == ["train.py", *argv]


def test_bad_input_is_train_pys_exit_code(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    monkeypatch.setattr(run.sys, "argv", [])
    assert run.main([str(ROOT / "config" / "tiny.py"), "--n_layers", "3"]) == 2
    assert not Path(small.out_dir).exists()


def test_an_orphan_tells_itself_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(run.os, "kill", lambda pid, number: sent.append((pid, number)))
    run.end_with(parent=-1)  # nobody's
    assert sent == [(os.getpid(), signal.SIGTERM)]
