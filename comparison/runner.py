"""A sweep from plan to report: what is finished is skipped, what was interrupted goes on, each result is kept."""

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from comparison import fairness, report, results
from comparison.arm import best_rate
from comparison.launch import Launcher
from comparison.measure import read_measured
from comparison.progress import Progress
from comparison.record import Record, is_finished, read
from comparison.results import Results
from comparison.summary import Summary
from comparison.sweep import Job, Sweep


def run(
    sweep: Sweep, launch: Launcher, keep_checkpoints: bool = True, reused: Sequence[Record] = ()
) -> tuple[Summary | None, int]:
    """Train what is neither there yet nor `reused`, and write results and report: (what they say, how many runs failed).

    With learning rates to choose from, the seeds that choose run at every rate, then the others at the chosen one. A run
    that fails is reported and left out; bad input (exit code 2) ends the sweep. Raises ValueError, SweepInterruptedError.
    """
    store = Store(sweep, reused)
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
        self.records: list[Record] = list(earlier.records)
        self.failures: list[str] = []
        self._reused = reused
        self._settings = replace(results.merge(sweep.settings, earlier.settings), baseline=sweep.settings.baseline)

    def results(self) -> Results:
        """Settings, failures of this time, and all records."""
        return Results(replace(self._settings, failures=tuple(self.failures)), tuple(self.records))

    def find(self, job: Job) -> Record | None:
        """The record of a job, from results.json, from its folder, or from what is reused."""
        planned = asdict(job.config)
        for record in self.records:
            if fairness.same_run(planned, record.config):
                return record
        if is_finished(job.folder) and fairness.same_run(planned, read(job.folder).config):
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


def train(jobs: Sequence[Job], store: Store, launch: Launcher, keep_checkpoints: bool) -> None:
    """Run the jobs that have no record yet."""
    pending = [job for job in jobs if store.find(job) is None]
    if len(pending) < len(jobs):
        print(f"{len(jobs) - len(pending)} of {len(jobs)} runs are finished already", file=sys.stderr)
    if not pending:
        return
    with Progress(pending) as progress:
        launch(pending, _reporting(store, progress, keep_checkpoints), progress.tick)


def _reporting(store: Store, progress: Progress, keep_checkpoints: bool) -> Callable[[Job, int, str], None]:
    def done(job: Job, code: int, said: str) -> None:
        if code == 2:
            raise ValueError(f"{job.name}: {said}")
        if code:
            store.failures.append(f"{job.name} ended with exit code {code}: {said}")
            progress.finished(job, f"failed with exit code {code}: {said}")
            return
        record = read(job.folder)
        store.add(record)
        if not keep_checkpoints:
            shutil.rmtree(job.folder / "checkpoints")
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
