"""Running jobs as an array on a SLURM cluster, through submitit, which is imported here alone."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comparison.launch import Done, Launcher, SweepInterruptedError, Tick, command, last_line, python_path
from comparison.sweep import Job
from runtime.files import append
from runtime.signals import StopSignals

_POLL_S = 1.0


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


def array(at_a_time: int, logs: Path, parameters: Mapping[str, Any], cluster: str = "slurm") -> Launcher:
    """A launcher that submits all jobs as one array of which `at_a_time` run at once; `parameters` are submitit's."""

    def launch(jobs: Sequence[Job], done: Done, tick: Tick) -> None:
        import submitit

        try:
            executor = submitit.AutoExecutor(folder=logs / "slurm", cluster=cluster)
            limits = {"slurm_array_parallelism": at_a_time} if cluster == "slurm" else {}
            executor.update_parameters(name="compare", **limits, **parameters)
            with executor.batch():
                submitted = [executor.submit(Task(job.arguments, logs / f"{job.name}.log")) for job in jobs]
        # What submitit makes of no sbatch, of one that refuses, and of parameters that it does not know.
        except (RuntimeError, NameError, AssertionError) as error:
            told = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"the jobs cannot be submitted ({told}); put --slurm KEY=VALUE right, or use --launcher local"
            ) from None
        waiting = dict(zip(jobs, submitted, strict=True))
        with StopSignals() as signals:
            try:
                while waiting:
                    time.sleep(_POLL_S)
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


def parameters(words: Sequence[str]) -> dict[str, Any]:
    """submitit's parameters from KEY=VALUE words; whole numbers are integers. Raises ValueError."""
    pairs = [word.partition("=") for word in words]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(
            f"--slurm {wrong[0]!r} is not KEY=VALUE, as in --slurm timeout_min=60 slurm_partition=gpu gpus_per_node=1"
        )
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}
