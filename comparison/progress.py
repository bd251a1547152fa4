"""Progress of a whole sweep: a bar over all steps on a terminal, and a line with the time left after each run."""

import json
import sys
import time
from collections.abc import Sequence

from comparison.sweep import Job

_REFRESH_S = 2.0
_TAIL_BYTES = 1 << 20  # more than one row, telemetry of a large model included


class Progress:
    """Counts optimizer steps of all jobs; enter it while they run."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        from tqdm import tqdm

        self._jobs, self._finished, self._steps_finished = list(jobs), 0, 0
        self._total = sum(job.config.max_steps for job in jobs)
        self._before = self._now = sum(steps_done(job) for job in jobs)  # of runs that were interrupted
        self._started, self._refreshed = time.monotonic(), 0.0
        self._bar = tqdm(total=self._total, initial=self._before, unit="step", disable=None, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
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
        self._steps_finished += job.config.max_steps
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
    """The last step in the metrics of a job's folder."""
    path = job.folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    with open(path, "rb") as file:  # the end alone: a long run's rows are megabytes, and this is called every few seconds
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]  # what follows the last newline is still being written
    try:
        return int(json.loads(lines[-1])["step"])
    except (IndexError, ValueError, KeyError, TypeError):  # no row yet, or a damaged one, which train.py tells
        return 0
