"""Running jobs as processes: side by side here, one after the other on all processes of torchrun, or as a SLURM array.

Side by side, a worker (comparison/worker.py) trains one job after another, since imports and compilation take longer than a
short run. A job that does not end well ends its worker alone. submitit, for SLURM, is imported here alone.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from comparison.plan import Job
from data.files import append
from runtime.signals import StopSignals

_POLL_S, _SLURM_POLL_S = 0.2, 1.0
_SHAPES = 16  # whose compiled graphs a worker keeps: some 20 MiB each (LOG.md, 2026-11-27)
PARENT = "COMPARE_PARENT_PID"  # environment of a job: the process whose end is its own too
Done = Callable[[Job, int, str], None]  # job, exit code, last line that it said
Tick = Callable[[Sequence[Job]], None]  # the jobs that are running


class SweepInterruptedError(Exception):
    """A stop signal came; every job was told and has stopped."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.exit_code = 128 + number


class Launcher(Protocol):
    """Runs jobs and reports each; an exception of `done` stops the others. Raises SweepInterruptedError."""

    def __call__(self, jobs: Sequence[Job], done: Done, tick: Tick) -> None: ...


def side_by_side(slots: int, logs: Path) -> Launcher:
    """At most `slots` jobs at a time, each with its share of the devices or cores, in a worker that a slot keeps."""

    def launch(jobs: Sequence[Job], done: Done, tick: Tick) -> None:
        waiting = list(jobs)
        running: dict[int, Job] = {}
        workers: dict[int, Worker] = {}
        with StopSignals() as signals:
            try:
                while waiting or running:
                    for slot in set(range(slots)) - running.keys():
                        worker = workers.get(slot)
                        if job := take(waiting, worker.shapes if worker else (), running.values()):
                            workers[slot] = hand_over(job, worker, logs, share(slot, slots))
                            running[slot] = job
                        elif worker and not waiting:
                            stop([workers.pop(slot)])
                    time.sleep(_POLL_S)
                    if signals.received:
                        raise SweepInterruptedError(signals.received)
                    for slot, job in list(running.items()):
                        if (code := workers[slot].poll()) is not None:
                            del running[slot]
                            if workers[slot].has_ended:
                                del workers[slot]
                            done(job, code, last_line(logs, job))
                    tick(list(running.values()))
            finally:
                stop(list(workers.values()))

    return launch


def take(waiting: list[Job], shapes: Iterable[str], running: Iterable[Job] = ()) -> Job | None:
    """Remove and return the next job: of those with the first one's seed, one whose graphs are compiled already, if any.

    A branch waits for its trunk. None where all jobs wait for others.
    """
    before = {job.name for job in [*waiting, *running]}
    ready = [job for job in waiting if not job.trunk or job.trunk.name not in before]
    if not ready:
        return None
    same_seed = [job for job in ready if job.config.seed == ready[0].config.seed]  # what is there early is paired
    job = next((job for job in same_seed if job.shape in shapes), ready[0])
    waiting.remove(job)
    return job


def hand_over(job: Job, worker: "Worker | None", logs: Path, environment: dict[str, str]) -> "Worker":
    """Give a job to the worker, or to a new one where it cannot take it; the one that has it."""
    if worker and not worker.can_take(job):
        stop([worker])
        worker = None
    worker = worker or Worker(start_worker(job, logs, environment), job)
    worker.give(job, logs)
    return worker


class Worker:
    """A process that trains one job after another, as comparison/worker.py says. It ends after a job that does not end well."""

    def __init__(self, process: "subprocess.Popen[bytes]", first: Job) -> None:
        self.shapes: set[str] = set()
        """Of the jobs whose compiled graphs it keeps."""
        self._process, self._settings = process, self._settings_of(first)
        self._finished: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @staticmethod
    def _settings_of(job: Job) -> tuple[str, bool]:
        return job.config.device, job.config.deterministic

    def can_take(self, job: Job) -> bool:
        """Whether its process is there, and on CUDA has read what only a new process reads again."""
        return self._process.poll() is None and self._settings_of(job) == self._settings

    def give(self, job: Job, logs: Path) -> None:
        """Let it train a job, when it has none; what the job says goes to `logs`/<name>.log."""
        forgets = job.shape not in self.shapes and len(self.shapes) == _SHAPES
        self.shapes = (set() if forgets else self.shapes) | {job.shape}
        order = {"arguments": job.arguments, "log": str(log_of(logs, job)), "forgets_graphs": forgets}
        assert self._process.stdin is not None, "it was started with a pipe"
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it has just died, and `poll` says of what

    def poll(self) -> int | None:
        """The exit code of its job once that is over: 0, or the code with which the process has ended."""
        if self._finished.empty():
            if self._process.poll() is None or self._listener.is_alive():
                return None
            if self._finished.empty():
                return self._process.returncode
        self._finished.get()
        return 0

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone."""
        return self._process.poll() is not None

    def terminate(self) -> None:
        """SIGTERM: a job finishes its step and writes a checkpoint. Without a job it ends at once."""
        self._process.terminate()
        assert self._process.stdin is not None, "it was started with a pipe"
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            return  # it is gone

    def wait(self) -> object:
        """Until it has ended."""
        return self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None, "it was started with a pipe"
        for line in self._process.stdout:
            self._finished.put(line)


def start_worker(job: Job, logs: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a worker; what it says before its first job goes to that job's log. It ends when this process does."""
    with append(log_of(logs, job)) as log:
        return subprocess.Popen(
            [sys.executable, "-m", "comparison.worker"],
            env=os.environ | python_path() | {PARENT: str(os.getpid())} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches us alone, and we tell the jobs once
        )


def all_processes(logs: Path) -> Launcher:
    """Under torchrun, on rank 0: each job runs on all processes, one job after the other. The other ranks `follow`."""

    def launch(jobs: Sequence[Job], done: Done, tick: Tick) -> None:
        for job in jobs:
            order = (job, _free_port())
            dist.broadcast_object_list([order], src=0)
            code = _take_part(*order, logs, lambda job=job: tick([job]))  # type: ignore[misc]
            done(job, code, last_line(logs, job))

    return launch


def follow(logs: Path) -> None:
    """On a rank above 0: take part in every job that rank 0 announces, until there are none. Raises SweepInterruptedError."""
    while True:
        order: list[tuple[Job, int] | None] = [None]
        dist.broadcast_object_list(order, src=0)
        if order[0] is None:
            return
        _take_part(*order[0], logs, lambda: None)


def join_torchrun() -> int:
    """The rank of this process under torchrun, in a process group that announces jobs; 0 and no group without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    dist.init_process_group("gloo", timeout=timedelta(days=30))  # a follower waits while rank 0 reads and writes results
    return dist.get_rank()


def dismiss() -> None:
    """On rank 0: let the followers go. Leaves the process group, if there is one."""
    if dist.is_initialized():
        if dist.get_rank() == 0:
            dist.broadcast_object_list([None], src=0)
        dist.destroy_process_group()


def start(
    job: Job, logs: Path, environment: dict[str, str], removed: Sequence[str] = (), suffix: str = ""
) -> subprocess.Popen[bytes]:
    """Start a job; what it says goes to `logs`/<name>.log. It stops, with a checkpoint, when this process ends."""
    inherited = {name: value for name, value in os.environ.items() if name not in removed}
    with append(log_of(logs, job, suffix)) as log:
        return subprocess.Popen(
            command(job.arguments),
            env=inherited | python_path() | {PARENT: str(os.getpid())} | environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches us alone, and we tell the jobs once
        )


def command(arguments: Sequence[str]) -> list[str]:
    """The command line of a job's process."""
    return [sys.executable, "-m", "comparison.run", *arguments]


def python_path() -> dict[str, str]:
    """Environment by which a process that starts in any folder finds this project."""
    root = str(Path(__file__).resolve().parent.parent)
    return {"PYTHONPATH": os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH", "")) if path)}


class Process(Protocol):
    """What `stop` needs of a process."""

    def terminate(self) -> None: ...

    def wait(self) -> object: ...


def stop(processes: Sequence[Process]) -> None:
    """SIGTERM: each finishes its step and writes a checkpoint. Waits for them."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def share(slot: int, slots: int) -> dict[str, str]:
    """Environment that gives a slot its device, or its part of the cores; nothing where there is one slot."""
    if slots == 1:
        return {}
    if torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
        return {"CUDA_VISIBLE_DEVICES": visible[slot % len(visible)]}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // slots))}


def log_of(logs: Path, job: Job, suffix: str = "") -> Path:
    """The file of all that a job says."""
    return logs / f"{job.name}{suffix}.log"


def last_line(logs: Path, job: Job) -> str:
    """The last thing that a job said."""
    path = log_of(logs, job)
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _take_part(job: Job, port: int, logs: Path, tick: Callable[[], None]) -> int:
    rank = dist.get_rank()
    # A store of its own: torchrun's holds the keys of the processes that announce the jobs.
    removed = [name for name in os.environ if name.startswith("TORCHELASTIC_")]
    process = start(job, logs, {"MASTER_PORT": str(port)}, removed, suffix=f".{rank}" if rank else "")
    with StopSignals() as signals:
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                tick()
                if signals.received:
                    raise SweepInterruptedError(signals.received)
        finally:
            stop([process])
    return process.returncode


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Task:
    """What a node runs: a job's command. Preempted or timed out, it writes a checkpoint and is queued again."""

    arguments: tuple[str, ...]
    log: Path
    _process: Any = field(default=None, repr=False)

    def __call__(self) -> int:
        """The job's exit code."""
        with append(self.log) as log:
            self._process = subprocess.Popen(command(self.arguments), env=os.environ | python_path(), stdout=log, stderr=log)
            code: int = self._process.wait()
        return code

    def checkpoint(self) -> Any:
        """Called by submitit before the node is taken away."""
        import submitit

        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()
        return submitit.helpers.DelayedSubmission(Task(self.arguments, self.log))


def slurm_array(at_a_time: int, logs: Path, parameters: Mapping[str, Any], cluster: str = "slurm") -> Launcher:
    """A launcher that submits all jobs as one array of which `at_a_time` run at once; `parameters` are submitit's.

    Branches are an array of their own, submitted when their trunks have ended.
    """

    def launch(jobs: Sequence[Job], done: Done, tick: Tick) -> None:
        for wave in ([job for job in jobs if not job.trunk], [job for job in jobs if job.trunk]):
            if wave:
                submit(wave, done, tick)

    def submit(jobs: Sequence[Job], done: Done, tick: Tick) -> None:
        import submitit

        try:
            executor = submitit.AutoExecutor(folder=logs / "slurm", cluster=cluster)
            limits = {"slurm_array_parallelism": at_a_time} if cluster == "slurm" else {}
            executor.update_parameters(name="compare", **limits, **parameters)
            with executor.batch():
                submitted = [executor.submit(Task(job.arguments, log_of(logs, job))) for job in jobs]
        # What submitit makes of no sbatch, of one that refuses, and of parameters that it does not know.
        except (RuntimeError, NameError, AssertionError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"the jobs cannot be submitted ({reason}); put --slurm KEY=VALUE right, or use --launcher local"
            ) from None
        waiting = dict(zip(jobs, submitted, strict=True))
        with StopSignals() as signals:
            try:
                while waiting:
                    time.sleep(_SLURM_POLL_S)
                    if signals.received:
                        raise SweepInterruptedError(signals.received)
                    for job, task in list(waiting.items()):
                        if task.done():
                            del waiting[job]
                            failed = task.exception()
                            if failed:
                                done(job, 1, (str(failed).splitlines() or [type(failed).__name__])[-1])
                            else:
                                done(job, task.result(), last_line(logs, job))
                    tick(list(waiting))
            finally:
                for task in waiting.values():
                    task.cancel(check=False)

    return launch


def slurm_parameters(words: Sequence[str]) -> dict[str, Any]:
    """submitit's parameters from KEY=VALUE words; whole numbers are integers. Raises ValueError."""
    pairs = [word.partition("=") for word in words]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(
            f"--slurm {wrong[0]!r} is not KEY=VALUE, as in --slurm timeout_min=60 slurm_partition=gpu gpus_per_node=1"
        )
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}
