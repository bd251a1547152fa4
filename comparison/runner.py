"""A sweep from plan to report: what is finished is skipped, what was interrupted goes on, each result is kept."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from comparison import fairness, report, results
from comparison.arm import best_rate
from comparison.launch import Launcher
from comparison.measure import read_measured
from comparison.progress import Progress
from comparison.record import DivergedError, Record, is_finished, read
from comparison.results import Failure, Results
from comparison.summary import Summary
from comparison.sweep import Job, Sweep
from data.batches import FROM_START, SPREAD
from data.lock import locked
from runtime import checkpoint
from runtime.files import remove

# What may change where a run is trained further: how far, and how often it tells; not what its numbers mean.
_FURTHER = frozenset(("max_steps", "lr_decay_steps", "log_interval", "eval_interval", "telemetry_interval"))
_ORPHAN_S = 60.0  # a run whose sweep was killed notices within a second, finishes its step and writes a checkpoint


def run(
    sweep: Sweep, launch: Launcher, keep_checkpoints: bool = True, reused: Sequence[Record] = ()
) -> tuple[Summary | None, int]:
    """Train what is neither there yet nor `reused`, and write results and report: (what they say, how many runs failed).

    With learning rates to choose from, the seeds that choose run at every rate, then the others at the chosen one. A run
    that fails or diverges is a row of the report; the others go on. Raises ValueError before anything is trained, where the
    folder holds other runs; SweepInterruptedError.
    """
    store = Store(sweep, reused)
    for job in store.planned.values():
        check_folder(job)
    train(sweep.jobs(sweep.rate_seeds, sweep.rates), store, launch, keep_checkpoints)
    others = [seed for seed in sweep.seeds if seed not in sweep.rate_seeds]
    if others:
        train(_at_best_rate(sweep, store.records, others), store, launch, keep_checkpoints)
    if not store.records:
        return None, len(store.failures)
    return report.write(sweep.out_dir, store.results()), len(store.failures)


class Store:
    """The sweep's results.json, rewritten after every run; it may hold runs whose folders are gone."""

    def __init__(self, sweep: Sweep, reused: Sequence[Record] = ()) -> None:
        self.path = sweep.out_dir / results.FILE
        earlier = results.load(self.path) if self.path.is_file() else Results(sweep.settings)
        self.planned = {job.name: job for job in sweep.jobs(sweep.seeds, sweep.rates)}
        self._reused = reused
        settings = replace(results.merge(sweep.settings, earlier.settings), baseline=sweep.settings.baseline)
        # A run of this sweep that failed before is tried again; one of an earlier sweep in this folder stays told.
        self._settings = replace(settings, failures=tuple(f for f in settings.failures if f.run not in self.planned))
        self.records: list[Record] = [
            record for record in earlier.records if not superseded(record, self.planned, settings.free, self.path)
        ]
        self.failures: list[Failure] = []

    def results(self) -> Results:
        """Settings, failures of this time, and all records."""
        failures = self._settings.failures + tuple(self.failures)
        return Results(replace(self._settings, failures=failures), tuple(self.records))

    def find(self, job: Job) -> Record | None:
        """The record of a job, from results.json, from its folder, or from what is reused. Raises DivergedError."""
        planned = asdict(job.config)
        for record in self.records:
            if fairness.same_run(planned, record.config):
                return record
        if is_finished(job.folder) and fairness.same_run(planned, asdict(checkpoint.read_config(job.folder))):
            self.add(read_measured(job.folder))
            return self.records[-1]
        for record in self._reused:
            if fairness.same_run(planned, record.config):
                self.add(record)
                return record
        return None

    def add(self, record: Record) -> None:
        """One more; on the disk before this returns."""
        self.records.append(record)
        results.save(self.path, self.results())

    def fail(self, job: Job, reason: str) -> None:
        """A job has no result, because of `reason`."""
        self.failures.append(Failure(job.arm, job.name, reason))


def superseded(record: Record, planned: Mapping[str, Job], free: Sequence[str], where: Path) -> bool:
    """Whether a planned job trains this record's run further. Raises ValueError for a record of another configuration."""
    any_job = next(iter(planned.values()))
    changed = fairness.changes(asdict(any_job.config), record.config, free)
    if not changed:
        return False
    job = planned.get(Path(record.config.get("out_dir", "")).name)
    if (
        job
        and set(changed) <= _FURTHER
        and record.config["max_steps"] < job.config.max_steps
        and checkpoint.checkpoints(job.folder)
    ):
        return True
    name = next((name for name in changed if name not in _FURTHER), changed[0])
    raise ValueError(
        f"{where} holds runs with {name}={record.config.get(name)!r}, this sweep has {getattr(any_job.config, name)!r}; "
        "give another --out_dir"
    )


def check_folder(job: Job) -> None:
    """Raises ValueError where a job's folder holds a run that this job would not go on with, but change what it says."""
    there = checkpoint.checkpoints(job.folder)
    if not there or not (job.folder / "config.json").is_file():
        return
    earlier = checkpoint.read_config(job.folder)
    changed = fairness.changes(asdict(job.config), asdict(earlier))
    changed += ["activation"] if job.config.activation != earlier.activation else []
    changed += ["seed"] if job.config.seed != earlier.seed else []
    wrong = [name for name in changed if name not in _FURTHER]
    if not wrong and job.config.decay_steps != earlier.decay_steps:
        wrong = ["lr_decay_steps" if "lr_decay_steps" in changed else "max_steps"]
    if not wrong and changed and int(there[-1].name[5:]) >= job.config.max_steps:
        wrong = changed  # it has all its steps: nothing would be computed, and config.json would say that it was
    if wrong:
        told = f"{wrong[0]}={getattr(earlier, wrong[0])!r}, this sweep has {getattr(job.config, wrong[0])!r}"
        raise ValueError(f"{job.folder} holds a run with {told}; give another --out_dir")


def train(jobs: Sequence[Job], store: Store, launch: Launcher, keep_checkpoints: bool) -> None:
    """Run the jobs that have no record yet."""
    pending = []
    for job in jobs:
        try:
            if store.find(job) is None:
                pending.append(job)
        except DivergedError as error:  # it would diverge again
            store.fail(job, str(error))
        except ValueError:  # its folder is damaged; train.py says how, and that is the job's failure
            pending.append(job)
    if len(pending) < len(jobs):
        print(f"{len(jobs) - len(pending)} of {len(jobs)} runs are finished already", file=sys.stderr)
    if not pending:
        return
    if old := [record for record in store.records if record.data.get("val_rule") == FROM_START]:
        raise ValueError(
            f"{fairness.describe(old[0])} was evaluated on targets {FROM_START} of the validation set, new runs are on targets "
            f"{SPREAD}: their losses do not compare; give another --out_dir, without --reuse of such runs"
        )
    for job in pending:
        wait_for_orphan(job.folder)
    with Progress(pending) as progress:
        launch(pending, _reporting(store, progress, keep_checkpoints), progress.tick)


def wait_for_orphan(folder: Path) -> None:
    """Wait until a run that a killed sweep left behind has stopped. One that does not stop is told by train.py."""
    deadline, told = time.monotonic() + _ORPHAN_S, False
    while folder.is_dir():
        try:
            with locked(folder):
                return
        except ValueError as error:
            if time.monotonic() > deadline:
                return
            if not told:
                print(f"waiting up to {_ORPHAN_S:.0f} s: {error}", file=sys.stderr)
            told = True
            time.sleep(0.2)


def _reporting(store: Store, progress: Progress, keep_checkpoints: bool) -> Callable[[Job, int, str], None]:
    def done(job: Job, code: int, said: str) -> None:
        try:
            if code:
                raise ValueError(f"exit code {code}: {said}")
            record = read(job.folder)
        except ValueError as error:
            store.fail(job, str(error))
            progress.finished(job, f"failed: {error}")
            return
        store.add(record)
        if not keep_checkpoints:
            remove(job.folder / "checkpoints")
        progress.finished(job, f"val_loss {record.val_loss:.4f}")

    return done


def _at_best_rate(sweep: Sweep, records: Sequence[Record], seeds: Sequence[int]) -> list[Job]:
    jobs = []
    for activation, values in sweep.cells():
        rates = sweep.rates
        if rates:
            mine = [
                r
                for r in records
                if r.activation == activation and all(r.config[name] == value for name, value in values.items())
            ]
            if not mine:
                continue  # it failed at every rate
            rates = (best_rate(mine, sweep.rate_seeds),)
        jobs += [sweep.job(activation, values, rate, seed) for seed in seeds for rate in rates or (None,)]
    return sorted(jobs, key=lambda job: job.config.seed)
