"""A sweep goes on where it stopped: runs in results.json or in their folders are not trained again."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from comparison import results, runner
from comparison.launch import Done, SweepInterruptedError, Tick
from comparison.sweep import Job, Sweep, plan
from runtime.signals import STOP_SIGNALS

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
    summary, failures = runner.run(sweep(tmp_path), trainer)
    assert failures == 0
    assert summary is not None
    assert [arm.label for arm in summary.arms] == ["gelu", "relu"]
    assert trainer.trained[:2] == ["gelu-seed=1337", "relu-seed=1337"]  # paired from the first on
    assert len(trainer.trained) == 6
    assert (tmp_path / "sweep" / "report.html").is_file()
    shutil.rmtree(tmp_path / "sweep" / "gelu-seed=1337")  # results.json is enough
    again, _ = runner.run(sweep(tmp_path), trainer)
    assert len(trainer.trained) == 6
    assert again is not None
    assert [c.interval.mean for c in again.contrasts] == pytest.approx([c.interval.mean for c in summary.contrasts], rel=1e-5)


def test_an_interrupted_sweep_goes_on(finish_run: Any, tmp_path: Path) -> None:
    first = Trainer(finish_run, loss_of, stop_after=4)
    with pytest.raises(SweepInterruptedError):
        runner.run(sweep(tmp_path), first)
    assert len(results.load(tmp_path / "sweep" / "results.json").records) == 4
    (tmp_path / "sweep" / "results.json").unlink()  # folders are enough, too
    second = Trainer(finish_run, loss_of)
    runner.run(sweep(tmp_path), second)
    assert len(second.trained) == 2
    assert not set(first.trained) & set(second.trained)


def test_more_seeds_and_activations_join_what_is_there(finish_run: Any, tmp_path: Path) -> None:
    trainer = Trainer(finish_run, loss_of)
    runner.run(plan(TINY, ["gelu"], 2, {}, tmp_path / "sweep"), trainer)
    summary, _ = runner.run(sweep(tmp_path), trainer)
    assert len(trainer.trained) == 6
    assert summary is not None
    assert summary.contrasts[0].seeds == (1337, 1338, 1339)


def test_finished_runs_of_another_sweep_are_taken_over(finish_run: Any, tmp_path: Path) -> None:
    trainer = Trainer(finish_run, loss_of)
    runner.run(plan(TINY, ["gelu", "silu"], 3, {}, tmp_path / "other"), trainer)
    reused = results.gather([tmp_path / "other"]).records
    summary, _ = runner.run(sweep(tmp_path), trainer, reused=reused)
    assert trainer.trained[6:] == ["relu-seed=1337", "relu-seed=1338", "relu-seed=1339"]
    assert summary is not None
    assert [arm.label for arm in summary.arms] == ["gelu", "relu"]  # silu is none of this sweep's
    assert len(results.load(tmp_path / "sweep" / "results.json").records) == 6


def test_a_failed_run_is_told_and_tried_again(finish_run: Any, tmp_path: Path) -> None:
    def broken(config: Any) -> float | None:
        return None if config.activation == "relu" and config.seed == 1338 else loss_of(config)

    summary, failures = runner.run(sweep(tmp_path), Trainer(finish_run, broken))
    assert failures == 1
    assert summary is not None
    assert any("relu-seed=1338 ended with exit code 1: it broke" in note for note in summary.notes)
    assert summary.contrasts[0].seeds == (1337, 1339)
    trainer = Trainer(finish_run, loss_of)
    summary, failures = runner.run(sweep(tmp_path), trainer)
    assert trainer.trained == ["relu-seed=1338"]
    assert failures == 0
    assert summary is not None
    assert summary.notes == ()


def test_nothing_but_failures_is_no_report(finish_run: Any, tmp_path: Path) -> None:
    summary, failures = runner.run(sweep(tmp_path), Trainer(finish_run, lambda config: None))
    assert (summary, failures) == (None, 6)


def test_bad_input_ends_the_sweep(finish_run: Any, tmp_path: Path) -> None:
    def launch(jobs: Sequence[Job], done: Done, tick: Tick) -> None:
        done(jobs[0], 2, "train.py: data_dir does not exist")

    with pytest.raises(ValueError, match=r"gelu-seed=1337: .* does not exist"):
        runner.run(sweep(tmp_path), launch)


def test_some_seeds_choose_the_rate_and_the_others_follow(finish_run: Any, tmp_path: Path) -> None:
    trainer = Trainer(finish_run, loss_of)
    summary, _ = runner.run(sweep(tmp_path, rates=(1e-3, 2e-3, 4e-3), num_rate_seeds=1), trainer)
    assert sorted(trainer.trained[:6]) == sorted(
        f"{a}-lr={r}-seed=1337" for a in ("gelu", "relu") for r in ("0.001", "0.002", "0.004")
    )
    assert trainer.trained[6:] == [f"{a}-lr=0.002-seed={s}" for s in (1338, 1339) for a in ("gelu", "relu")]
    shutil.rmtree(tmp_path / "sweep" / "gelu-lr=0.001-seed=1337")
    runner.run(sweep(tmp_path, rates=(1e-3, 2e-3, 4e-3), num_rate_seeds=1), trainer)
    assert len(trainer.trained) == 10  # rates and their min_lr are found again in results.json, to the bit
    assert summary is not None
    assert [arm.rate for arm in summary.arms] == [2e-3, 2e-3]
    assert [arm.seeds for arm in summary.arms] == [(1337, 1338, 1339)] * 2


def test_checkpoints_can_be_discarded(finish_run: Any, tmp_path: Path) -> None:
    def finish(config: Any, loss: float) -> Path:
        folder: Path = finish_run(config, loss)
        (folder / "checkpoints" / "step_00000500").mkdir(parents=True)
        return folder

    runner.run(sweep(tmp_path), Trainer(finish, loss_of), keep_checkpoints=False)
    assert list((tmp_path / "sweep").glob("*/metrics.jsonl"))
    assert not list((tmp_path / "sweep").glob("*/checkpoints"))
