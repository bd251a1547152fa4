"""Sweeps of compare.py that die or find the disk full: the same command again ends with the verdict of an undisturbed one."""

import dataclasses
import errno
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparison import launch, plots
from comparison import run as job
from comparison.plan import Job
from config.schema import Config
from faults.injection import ReplaceFails
from faults.process import PRESET, Child, one_line
from faults.runs import arguments, small_config, write_shards
from faults.tally import Tally, expect, keep
from runtime.signals import STOP_SIGNALS

STEPS = 12
LAST = f"relu-seed=1337/checkpoints/step_{STEPS:08d}"
# What is renamed into place when it is whole, in the order in which a sweep writes it.
WRITTEN = (LAST, "results.json", "relu-seed=1337/measured.json", "gelu-seed=1337/run.json", "report.md")


def run(tally: Tally, folder: Path) -> None:
    """Faults at what a sweep writes, a sweep made longer, and two sweeps in one folder."""
    data_dir = folder / "data"
    data_dir.mkdir()
    config = dataclasses.replace(
        small_config(write_shards(data_dir), folder), max_steps=STEPS, lr_decay_steps=STEPS, checkpoint_interval=4
    )
    plain = folder / "plain"
    expect(sweep(config, plain).finish() == 0, f"the undisturbed sweep failed: {plain.with_suffix('.log').read_text()[-500:]}")
    faults = [(path, error) for path in WRITTEN for error in (0, errno.ENOSPC)]
    for path, error in faults if tally.full else [(LAST, 0), ("results.json", errno.ENOSPC)]:
        tally.plan(1, 1)
        with tally.fault(f"{os.strerror(error) if error else 'SIGKILL'} at {path}"):
            disturbed(config, plain, folder / f"{Path(path).name}-{error}", ReplaceFails(path, error))
    tally.plan(2, 2)
    with tally.fault("a sweep made longer in its folder"):
        longer = folder / "longer"
        expect(sweep(dataclasses.replace(config, max_steps=8), longer).finish() == 0, "the shorter sweep failed")
        again(config, plain, longer)
    with tally.fault("two sweeps in one folder"):
        two_at_once(config, plain, folder / "two")


def disturbed(config: Config, plain: Path, out: Path, fault: ReplaceFails) -> None:
    """One sweep with a fault ends with an exit code that says so, and without a traceback; then it goes on."""
    child = sweep(config, out, fault)
    code = child.finish()
    expect(code in (1, -signal.SIGKILL), f"exit code {code}: {child.said[-500:]}")
    expect("Traceback" not in child.said, f"a traceback: {child.said[-800:]}")
    again(config, plain, out)


def again(config: Config, plain: Path, out: Path) -> None:
    """The same command without a fault: exit code 0, and what an undisturbed sweep says."""
    child = sweep(config, out)
    expect(child.finish() == 0, f"it did not go on: {child.said[-500:]}")
    keep(told(out) == told(plain), f"{told(out)} is not what the undisturbed sweep says: {told(plain)}")


def two_at_once(config: Config, plain: Path, out: Path) -> None:
    """The second is told who holds the folder; the first loses nothing."""
    first = sweep(config, out)
    first.until((out / "gelu-seed=1337" / "metrics.jsonl").exists, "its first run")
    first.send(signal.SIGSTOP)  # it holds the folder for as long as the second needs to come
    try:
        one_line(sweep(config, out, name="second"), 2, "is in use by process", str(first.pid))
    finally:
        first.send(signal.SIGCONT)
    expect(first.finish() == 0, f"it did not go on: {first.said[-500:]}")
    keep(told(out) == told(plain), f"{told(out)} is not what the undisturbed sweep says: {told(plain)}")


def sweep(config: Config, out: Path, fault: ReplaceFails | None = None, name: str = "") -> Child:
    """compare.py with GELU and ReLU at one seed."""
    fields = arguments(dataclasses.replace(config, activation="gelu", out_dir=""))
    argv = [PRESET, "--activations", "gelu", "relu", "--out_dir", str(out), *fields]
    return Child("compare", argv, out.with_suffix(f".{name}log"), ForkJobs(fault))


def told(out: Path) -> list[Any]:
    """What a results.json says, but for times: verdicts, and of each run its step, losses and weights.

    Differences to five digits: those of runs that are read from results.json are of losses with seven.
    """
    values = json.loads((out / "results.json").read_text(encoding="utf-8"))
    contrasts = [(c["arm"], c["verdict"], [f"{d:.5f}" for d in c["differences"]]) for c in values["summary"]["contrasts"]]
    runs = [
        (
            record["config"]["activation"],
            record["config"]["max_steps"],
            record["evaluations"]["val_loss"][-1],
            record["documents"],
            record["weights_sha256"],
        )
        for record in sorted(values["records"], key=lambda record: str(record["config"]["activation"]))
    ]
    return [contrasts, runs]


@dataclass(frozen=True)
class ForkJobs:
    """compare.py's jobs become forks of its process, which has imported all they need; and nothing is drawn."""

    fault: ReplaceFails | None

    def __call__(self) -> None:
        launch.start = Forked  # type: ignore[assignment]
        plots.figures = lambda summary: {}
        if self.fault:
            self.fault()


class Forked:
    """What launch.py needs of a subprocess.Popen."""

    def __init__(
        self, run: Job, logs: Path, environment: Mapping[str, str], removed: Sequence[str] = (), suffix: str = ""
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.returncode: int | None = None
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            log = os.open(logs / f"{run.name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update({**environment, launch.PARENT: str(parent)})
            code = job.main(list(run.arguments))
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def terminate(self) -> None:
        """SIGTERM."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode
