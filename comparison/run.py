"""A sweep from plan to report: what is finished is skipped, what was interrupted goes on, each result is kept.

As a program (python -m comparison.run) it is one run of a sweep: train it, then measure what the comparison needs of it.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import train
from comparison import report, results
from comparison.judge import Summary, arms_of, best_rate
from comparison.launch import PARENT, Launcher
from comparison.plan import Failure, Job, Sweep, merge, with_trunks
from comparison.record import DivergedError, Record, is_finished, is_measured, last_checkpoint, measure, read, read_measured
from comparison.results import Results
from config.command_line import parse
from config.schema import branch_step, names
from data.batches import FROM_START, SPREAD
from data.files import reason, remove
from data.lock import locked
from evaluation import scores
from evaluation import store as evaluations
from evaluation.request import Request
from evaluation.subject import load
from runtime import checkpoint
from runtime import log as metrics
from runtime.hardware import pick_device

log = logging.getLogger("compare")

# What may change where a run is trained further: how far, and how often it tells; not what its numbers mean.
_FURTHER = frozenset(("max_steps", "lr_decay_steps", "log_interval", "eval_interval", "telemetry_interval"))
_PARENT_POLL_S = 1.0
_REFRESH_S = 2.0
_TAIL_BYTES = 1 << 20  # more than one row, telemetry of a large model included
_ORPHAN_S = 60.0  # a run whose sweep was killed notices within a second, finishes its step and writes a checkpoint


class SweepProgress:
    """A bar over the optimizer steps of all jobs on a terminal, and a line with the time left after each run.

    Enter it while they run.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        from tqdm import tqdm

        self._jobs, self._finished, self._steps_finished = list(jobs), 0, 0
        self._total = sum(job.num_steps for job in jobs)
        self._before = self._now = sum(steps_done(job) for job in jobs)  # of runs that were interrupted
        self._started, self._refreshed = time.monotonic(), 0.0
        self._bar = tqdm(total=self._total, initial=self._before, unit="step", disable=None, dynamic_ncols=True)

    def __enter__(self) -> "SweepProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tick(self, running: Sequence[Job]) -> None:
        """Look how far the running jobs are, every few seconds."""
        if time.monotonic() - self._refreshed < _REFRESH_S:
            return
        self._refreshed = time.monotonic()
        self._move(self._steps_finished + sum(steps_done(job) for job in running))
        self._bar.set_postfix_str(", ".join(job.name for job in running), refresh=False)

    def finished(self, job: Job, outcome: str) -> None:
        """One job is over: say how it went and how long the rest will take."""
        self._finished += 1
        self._steps_finished += job.num_steps
        self._move(max(self._now, self._steps_finished))
        self._bar.write(f"[{self._finished}/{len(self._jobs)}] {job.name}: {outcome}{self._time_left()}", file=sys.stderr)

    def _move(self, steps: int) -> None:
        self._now = max(self._now, steps)
        self._bar.update(self._now - self._bar.n)

    def _time_left(self) -> str:
        done = self._now - self._before
        if self._finished == len(self._jobs) or done <= 0:
            return ""
        seconds = (time.monotonic() - self._started) * (self._total - self._now) / done
        return f"; about {seconds / 60:.0f} min left" if seconds >= 90 else f"; about {seconds:.0f} s left"


def steps_done(job: Job) -> int:
    """How many steps a job has computed, by the metrics of its folder."""
    path = job.folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    with open(path, "rb") as file:  # the end alone: a long run's rows are megabytes, and this is called every few seconds
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]  # what follows the last newline is still being written
    try:
        return max(0, int(json.loads(lines[-1])["step"]) - branch_step(job.config.branch_from))
    except (IndexError, ValueError, KeyError, TypeError):  # no row yet, or a damaged one, which train.py tells
        return 0


def run(
    sweep: Sweep,
    launch: Launcher,
    keep_checkpoints: bool = True,
    reused: Sequence[Record] = (),
    request: Request = Request(()),  # noqa: B008  # it is frozen
) -> tuple[Summary | None, int]:
    """Train what is neither there yet nor `reused`, and write results and report: (what they say, how many runs failed).

    Once all are trained, the runs that the report compares are scored in the tasks of `request`.
    With learning rates to choose from, the seeds that choose run at every rate, then the others at the chosen one. A run
    that fails or diverges is a row of the report; the others go on. Raises ValueError before anything is trained, where the
    folder holds other runs; SweepInterruptedError.
    """
    store = Store(sweep, reused)
    for job in store.planned.values():
        check_folder(job)
    keep = keep_checkpoints or bool(request.names)  # until the tasks are scored
    train_pending(sweep.jobs(sweep.rate_seeds, sweep.rates), store, launch, keep)
    others = [seed for seed in sweep.seeds if seed not in sweep.rate_seeds]
    if others:
        train_pending(_at_best_rate(sweep, store.records, others), store, launch, keep)
    if not store.records:
        return None, len(store.failures)
    if request.names:
        compared = [record for arm in arms_of(store.results()) for record in arm.records]
        score_tasks(compared, request, store.replace)
        for job in () if keep_checkpoints else with_trunks(list(store.planned.values())):
            if not store.failures if job.is_trunk else store.find(job):
                remove(job.folder / "checkpoints")
    return report.write(sweep.out_dir, store.results()), len(store.failures)


class Store:
    """The sweep's results.json, rewritten after every run; it may hold runs whose folders are gone."""

    def __init__(self, sweep: Sweep, reused: Sequence[Record] = ()) -> None:
        self.path = sweep.out_dir / results.FILE
        earlier = results.load(self.path) if self.path.is_file() else Results(sweep.settings)
        self.planned = {job.name: job for job in sweep.jobs(sweep.seeds, sweep.rates)}
        self._reused = reused
        settings = replace(merge(sweep.settings, earlier.settings), baseline=sweep.settings.baseline)
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
            if results.same_run(planned, record.config):
                return record
        if is_finished(job.folder) and results.same_run(planned, asdict(checkpoint.read_config(job.folder))):
            self.add(read_measured(job.folder))
            return self.records[-1]
        for record in self._reused:
            if results.same_run(planned, record.config):
                self.add(record)
                return record
        return None

    def add(self, record: Record) -> None:
        """One more; on the disk before this returns."""
        self.records.append(record)
        results.save(self.path, self.results())

    def replace(self, record: Record, by: Record) -> None:
        """One of the records has become another; on the disk before this returns."""
        self.records[next(i for i, own in enumerate(self.records) if own is record)] = by
        results.save(self.path, self.results())

    def fail(self, job: Job, reason: str) -> None:
        """A job has no result, because of `reason`."""
        self.failures.append(Failure(job.arm, job.name, reason))


def superseded(record: Record, planned: Mapping[str, Job], free: Sequence[str], where: Path) -> bool:
    """Whether a planned job trains this record's run further. Raises ValueError for a record of another configuration."""
    any_job = next(iter(planned.values()))
    changed = results.changes(asdict(any_job.config), record.config, free)
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
    changed = results.changes(asdict(job.config), asdict(earlier))
    changed += [name for name in names(compare="own") if getattr(job.config, name) != getattr(earlier, name)]
    wrong = [name for name in changed if name not in _FURTHER]
    if job.is_trunk:
        changed = []  # it is long enough, or is made longer
    elif not wrong and job.config.decay_steps != earlier.decay_steps:
        wrong = ["lr_decay_steps" if "lr_decay_steps" in changed else "max_steps"]
    if not wrong and changed and int(there[-1].name[5:]) >= job.config.max_steps:
        wrong = changed  # it has all its steps: nothing would be computed, and config.json would say that it was
    if wrong:
        change = f"{wrong[0]}={getattr(earlier, wrong[0])!r}, this sweep has {getattr(job.config, wrong[0])!r}"
        raise ValueError(f"{job.folder} holds a run with {change}; give another --out_dir")


def train_pending(jobs: Sequence[Job], store: Store, launch: Launcher, keep_checkpoints: bool) -> None:
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
            f"{results.describe(old[0])} was evaluated on targets {FROM_START} of the validation set, new runs are on targets "
            f"{SPREAD}: their losses do not compare; give another --out_dir, without --reuse of such runs"
        )
    jobs = [job for job in with_trunks(pending) if not (job.is_trunk and has_grown(job))]
    for job in jobs:
        wait_for_orphan(job.folder)
    with SweepProgress(jobs) as progress:
        launch(jobs, _reporting(store, progress, keep_checkpoints), progress.tick)
    if not keep_checkpoints and not store.failures:
        for job in jobs:
            remove(job.folder / "checkpoints")


def has_grown(trunk: Job) -> bool:
    """Whether all checkpoints that its branches need are there. Raises ValueError where the run has left one behind."""
    check_folder(trunk)
    there = {checkpoint.step_of(path) or 0 for path in checkpoint.checkpoints(trunk.folder)}
    missing = sorted(trunk.config.kept_steps - there)
    if missing and max(there, default=0) > missing[0]:
        raise ValueError(
            f"{trunk.folder} has gone past step {missing[0]} and kept no checkpoint of it; remove that folder to train it "
            "again, or give another --out_dir"
        )
    return not missing


def wait_for_orphan(folder: Path) -> None:
    """Wait until a run that a killed sweep left behind has stopped. One that does not stop is told by train.py."""
    deadline, is_announced = time.monotonic() + _ORPHAN_S, False
    while folder.is_dir():
        try:
            with locked(folder):
                return
        except ValueError as error:
            if time.monotonic() > deadline:
                return
            if not is_announced:
                print(f"waiting up to {_ORPHAN_S:.0f} s: {error}", file=sys.stderr)
            is_announced = True
            time.sleep(0.2)


def _reporting(store: Store, progress: SweepProgress, keep_checkpoints: bool) -> Callable[[Job, int, str], None]:
    broken: dict[str, str] = {}  # trunk -> what it said

    def done(job: Job, code: int, said: str) -> None:
        if job.is_trunk:
            if code:
                broken[job.name] = f"exit code {code}: {said}"
            progress.finished(job, f"failed: {broken[job.name]}" if code else "its branches begin")
            return
        try:
            if job.trunk and job.trunk.name in broken:
                raise ValueError(f"its trunk {job.trunk.name} failed: {broken[job.trunk.name]}")
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


def score_tasks(records: Sequence[Record], request: Request, keep: Callable[[Record, Record], None]) -> None:
    """Score the last checkpoint of each run in the tasks that are asked for; `keep(old, new)` takes every record at once.

    Scores that a record has of the same items, by the same version of lm_eval, are not computed again. A run whose weights
    are gone has none, which the log says.
    """
    prepared = request.prepare()
    for number, record in enumerate(records, 1):
        folder = Path(record.config["out_dir"])
        have = [record.tasks.get(task.name) for task in prepared]
        if all(own and own.is_of(task.sha256, task.harness) for own, task in zip(have, prepared, strict=True)):
            continue
        if not checkpoint.checkpoints(folder):
            log.info("%s: the weights are gone, so it has no scores in tasks", folder)
            continue
        from evaluation import harness

        subject = load(str(last_checkpoint(folder)))
        if record.weights_sha256 not in ("", subject.weights_sha256):
            raise ValueError(f"{folder} holds other weights than those that were measured; train it again in another folder")
        words, device = subject.words(), pick_device(subject.config.device)
        found = {}
        for task in prepared:
            found[task.name] = harness.score(task, subject.model, words, device)
            evaluations.save(subject, task.name, scores.to_json(found[task.name]))
        values = ", ".join(
            f"{name} {metric} {one.value:.4f}" for name, of in found.items() for metric, one in of.metrics.items()
        )
        log.info("[%d/%d] %s: %s", number, len(records), folder.name, values)
        keep(record, replace(record, tasks=record.tasks | found))


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


def main(argv: list[str]) -> int:
    """train.py's exit code for the arguments `argv`; after 0 the run's folder holds measured.json too, unless it diverged."""
    sys.argv = ["train.py", *argv]  # what run.json records: the command that makes the same run
    if PARENT in os.environ:
        threading.Thread(target=end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    code = train.main(argv)
    if code == 0 and os.environ.get("RANK", "0") == "0":
        try:
            finish(Path(parse(argv).out_dir))
        except ValueError as error:
            return train.fail(1, f"trained, but not measured: {error}")
        except OSError as error:
            return train.fail(1, f"trained, but not measured: {reason(error)}; the same command goes on from there")
    return code


def finish(folder: Path) -> None:
    """Measure a finished run, unless that was done or its loss is not finite. Raises ValueError, OSError."""
    losses = [row["val_loss"] for row in metrics.read(folder / "metrics.jsonl") if "val_loss" in row]
    if losses[-1] is not None and not is_measured(folder):
        measure(folder)


def end_with(parent: int) -> None:
    """Stop, with a checkpoint, when the process that started us is gone: two processes must not train one run."""
    while os.getppid() == parent:
        time.sleep(_PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
