"""--lengths: which runs there are and in which order, each length judged by itself, trunks shared and kept."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import compare
from comparison import launch, plots, results, run
from comparison.judge import summarise
from comparison.launch import Done, Tick
from comparison.plan import Job, Sweep, plan, step_counts, with_trunks
from comparison.record import from_json
from config.schema import Config
from data.shards import file_sha256
from tests.runs import ROOT, arguments, train_here

TINY = ROOT / "config" / "tiny.py"
STEPS = (500, 1000, 3000)
WSD = {"lr_schedule": "wsd"}


@pytest.fixture(autouse=True)
def nothing_else_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of every report take seconds, and have tests of their own."""
    monkeypatch.setattr(plots, "figures", lambda summary: {})


def sweep(tmp_path: Path, fields: dict[str, Any] | None = None, **changes: Any) -> Sweep:
    given = {"lengths": STEPS, "num_seeds": 2} | changes
    return plan(TINY, ["gelu", "relu"], overrides=WSD if fields is None else fields, out_dir=tmp_path / "sweep", **given)


def test_branches_of_one_trunk(tmp_path: Path) -> None:
    """Trunk and branch have one schedule up to the branch, and the branch decays over the last fifth."""
    planned = sweep(tmp_path)
    jobs = with_trunks(planned.jobs(planned.seeds, ()))
    assert [job.name for job in jobs[:8]] == [
        "gelu-seed=1337-trunk",
        "relu-seed=1337-trunk",
        *(f"{arm}-max_steps={steps}-seed=1337" for steps in STEPS for arm in ("gelu", "relu")),
    ]
    trunk, branch = jobs[0], jobs[4]
    assert (trunk.config.lr_schedule, trunk.config.max_steps, trunk.config.checkpoint_steps) == (
        "constant", 2400, "400,800,2400"
    )  # fmt: skip
    assert branch.config.branch_from == f"{trunk.folder}@800"
    assert (branch.config.max_steps, branch.config.decay_start, branch.num_steps) == (1000, 800, 200)
    assert sum(job.num_steps for job in jobs[:8]) == 2 * (2400 + 100 + 200 + 600)
    assert {job.config.telemetry_interval for job in jobs} == {250}


def test_cosine_trains_each_length_apart(tmp_path: Path) -> None:
    planned = sweep(tmp_path, {})
    jobs = with_trunks(planned.jobs(planned.seeds, ()))
    assert len(jobs) == 12
    assert {job.config.branch_from for job in jobs} == {""}
    assert {job.config.max_steps for job in jobs} == set(STEPS)


def test_trunks_of_each_rate_and_no_longer_than_needed(tmp_path: Path) -> None:
    planned = sweep(tmp_path, rates=(1e-3, 2e-3))
    jobs = planned.jobs(planned.seeds[:1], planned.rates)
    some = [job for job in jobs if job.config.max_steps < 3000]
    trunks = [job for job in with_trunks(some) if job.is_trunk]
    assert [trunk.name for trunk in trunks] == [f"{a}-lr={r}-seed=1337-trunk" for a in ("gelu", "relu") for r in (0.001, 0.002)]
    assert {trunk.config.max_steps for trunk in trunks} == {800}
    assert {trunk.config.learning_rate for trunk in trunks} == {1e-3, 2e-3}


@pytest.mark.parametrize(
    ("fields", "changes", "told"),
    [
        (WSD, {"lengths": (0, 10)}, "--lengths 0 is no number of steps"),
        (WSD, {"lengths": (10, 10)}, "--lengths 10,10 names one twice"),
        (WSD | {"max_steps": 5}, {}, "max_steps is given by --lengths already"),
        (WSD, {"varied": {"max_steps": (5, 6)}}, "max_steps is given by --lengths already"),
        ({"lr_schedule": "constant"}, {}, "--lengths needs runs that decay"),
        ({"lr_decay_steps": 500}, {}, "leave out branch_from and lr_decay_steps"),
        (WSD | {"warmup_steps": 600}, {}, "--lengths 500 leaves no steps before or in the decay"),
    ],
)
def test_lengths_that_cannot_be(tmp_path: Path, fields: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        sweep(tmp_path, fields, **changes)


def test_the_words_of_the_option() -> None:
    assert step_counts("1000,3000") == (1000, 3000)
    assert step_counts("") == ()
    with pytest.raises(ValueError, match="--lengths '1000 3000' is not numbers of steps apart by commas"):
        step_counts("1000 3000")


def test_a_branch_waits_for_its_trunk_alone(tmp_path: Path) -> None:
    planned = sweep(tmp_path)
    waiting = with_trunks(planned.jobs(planned.seeds[:1], ()))
    first, second = (launch.take(waiting, ()) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.is_trunk, second.is_trunk) == (True, True)
    assert launch.take(list(waiting), (), [first, second]) is None
    there = launch.take(waiting, (), [second])
    assert there is not None
    assert there.trunk is not None
    assert there.trunk.name == first.name


class Trainer:
    """A launcher whose runs end at once; `losses` gives each one's, None: with exit code 1."""

    def __init__(self, finish_run: Any, losses: Any) -> None:
        self.finish_run, self.losses = finish_run, losses
        self.trained: list[str] = []

    def __call__(self, jobs: Sequence[Job], done: Done, tick: Tick) -> None:
        for job in jobs:
            self.trained.append(job.name)
            tick([job])
            loss = self.losses(job.config)
            if loss is not None:
                shutil.rmtree(job.folder, ignore_errors=True)
                self.finish_run(job.config, loss)
                for step in {*job.config.kept_steps, job.config.max_steps}:
                    (job.folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)
            done(job, int(loss is None), "it broke")


def loss_of(config: Config) -> float:
    """relu leads by 0.1 at 500 steps, by 0.05 at 1000, and is behind at 3000; its best rate is another one there."""
    lead = {500: -0.1, 1000: -0.05, 3000: 0.02}.get(config.max_steps, 0.0) * (config.activation == "relu")
    best = 1e-3 if (config.activation, config.max_steps) == ("relu", 3000) else 2e-3
    noise = 0.001 * (hash((config.activation, config.seed, config.max_steps)) % 5)
    return 2 - 0.1 * config.max_steps / 3000 + lead + 0.01 * (config.seed % 10) + noise + 50 * abs(config.learning_rate - best)


def test_each_length_is_judged_by_itself_at_its_own_best_rate(finish_run: Any, tmp_path: Path) -> None:
    trainer = Trainer(finish_run, loss_of)
    planned = sweep(tmp_path, rates=(1e-3, 2e-3), num_rate_seeds=1, num_seeds=3)
    summary, failures = run.run(planned, trainer)
    assert failures == 0
    assert summary is not None
    rates = {arm.label: arm.rate for arm in summary.arms}
    assert rates["relu max_steps=500"] == 2e-3
    assert rates["relu max_steps=3000"] == 1e-3
    assert [c.about for c in summary.contrasts] == ["activation"] * 3  # no length against another
    assert all(c.p_holm == c.interval.p for c in summary.contrasts)  # one comparison at each
    assert [f"{c.interval.mean:.1f}" for c in summary.contrasts if "=500" in c.arm] == ["-0.1"]
    report = (tmp_path / "sweep" / "report.md").read_text()
    first = report.split("| --- |")[0].splitlines()[-1]
    assert first.startswith("| activation | perplexity | steps | tokens |")
    rows = [[cell.strip() for cell in line.split("|")] for line in report.splitlines() if line.startswith("| relu | ")]
    verdicts = {steps: difference.partition(":")[0] for _, _, difference, steps, *_ in rows}
    assert (verdicts["500"], verdicts["3,000"]) == ("lower loss", "higher loss")
    assert (tmp_path / "sweep" / "lengths.png").read_bytes().startswith(b"\x89PNG")

    # Seeds beyond the first grow a trunk at the chosen rates alone, each no longer than its branches need.
    trunks = [name for name in trainer.trained if "trunk" in name]
    assert len(trunks) == 4 + 2 * 3
    for folder in (tmp_path / "sweep").glob("*-seed=*"):
        shutil.rmtree(folder)
    (tmp_path / "sweep" / "report.md").unlink()
    assert compare.main(["report", str(tmp_path / "sweep")]) == 0
    assert (tmp_path / "sweep" / "report.md").read_text() == report
    again = summarise(results.load(tmp_path / "sweep" / "results.json"))
    assert [c.verdict for c in again.contrasts] == [c.verdict for c in summary.contrasts]


def test_a_longer_length_makes_the_trunk_longer(finish_run: Any, tmp_path: Path) -> None:
    trainer = Trainer(finish_run, loss_of)
    run.run(sweep(tmp_path, lengths=(500, 1000)), trainer)
    assert len(trainer.trained) == 4 + 8
    summary, _ = run.run(sweep(tmp_path), trainer)
    assert sorted(trainer.trained[12:]) == sorted(
        f"{arm}{length}-seed={seed}{trunk}"
        for arm in ("gelu", "relu")
        for seed in (1337, 1338)
        for length, trunk in (("", "-trunk"), ("-max_steps=3000", ""))
    )
    assert summary is not None
    assert summary.lengths == list(STEPS)
    with pytest.raises(ValueError, match="has gone past step 1600 and kept no checkpoint of it"):
        run.run(sweep(tmp_path, lengths=(500, 2000)), trainer)


def test_a_trunk_that_fails_is_told_of_in_its_branches(finish_run: Any, tmp_path: Path) -> None:
    def broken(config: Config) -> float | None:
        return None if config.activation == "relu" else loss_of(config)

    summary, failures = run.run(sweep(tmp_path), Trainer(finish_run, broken))
    assert failures == 6
    assert summary is not None
    assert any("relu-seed=1337-trunk failed: exit code 1: it broke" in note for note in summary.notes)
    report = (tmp_path / "sweep" / "report.md").read_text()
    assert "| relu max_steps=500 | failed: its trunk" in report


def test_checkpoints_of_trunks_can_be_discarded(finish_run: Any, tmp_path: Path) -> None:
    run.run(sweep(tmp_path), Trainer(finish_run, loss_of), keep_checkpoints=False)
    assert not list((tmp_path / "sweep").glob("*/checkpoints"))


def test_a_sweep_with_lengths_from_the_command_line(
    small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real runs: the branch of a sweep is the uninterrupted wsd run, to the bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fields = arguments(
        dataclasses.replace(small, activation="gelu", out_dir="", lr_schedule="wsd", max_steps=1000, eval_interval=5)
    )
    fields = [
        word for name, value in zip(fields[::2], fields[1::2], strict=True) if name != "--max_steps" for word in (name, value)
    ]
    out = tmp_path / "sweep"
    argv = [str(TINY), "--activations", "gelu", "relu", "--lengths", "5,15", "--out_dir", str(out), *fields]
    assert compare.main(argv) == 0
    assert "[6/6]" in capsys.readouterr().err
    records = {(r.activation, r.config["max_steps"]): r for r in results.load(out / "results.json").records}
    assert len(records) == 4
    whole = train_here(small, activation="relu", lr_schedule="wsd", max_steps=15, eval_interval=5, telemetry_interval=250)
    record = records["relu", 15]
    weights = Path(whole.out_dir) / "checkpoints" / "step_00000015" / "model.safetensors"
    assert record.weights_sha256 == file_sha256(weights)
    assert record.evaluations["step"] == [0, 5, 10, 12, 15]  # the trunk was evaluated at its end too
    assert json.loads((out / "relu-max_steps=15-seed=1337" / "run.json").read_text())["branched_from"]["step"] == 12
    assert from_json(json.loads(json.dumps(dataclasses.asdict(record))), "here") == record
