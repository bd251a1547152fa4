"""Sweeps of compare.py that die or find the disk full: the same command again ends with the verdict of an undisturbed one."""

import dataclasses
import errno
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comparison import launch, plots, results, worker
from comparison.plan import Job
from config.schema import Config
from runtime.signals import STOP_SIGNALS
from tests.faults.forms import some
from tests.faults.injection import ReplaceFails
from tests.processes import Child, ends, one_line
from tests.runs import PRESET, arguments, keep

pytestmark = pytest.mark.fault

STEPS = 12
LAST = f"relu-seed=1337/checkpoints/step_{STEPS:08d}"
# What is renamed into place when it is whole, in the order in which a sweep writes it.
WRITTEN = (LAST, "results.json", "relu-seed=1337/measured.json", "gelu-seed=1337/run.json", "report.md")


@pytest.fixture(scope="module")
def config(base: Config) -> Config:
    return dataclasses.replace(base, max_steps=STEPS, lr_decay_steps=STEPS, checkpoint_interval=4)


@pytest.fixture(scope="module")
def plain(config: Config, folder: Path) -> Path:
    """The undisturbed sweep."""
    ends(sweep(config, folder / "plain"))
    return folder / "plain"


FAULTS = [(path, error) for path in WRITTEN for error in (0, errno.ENOSPC)]


@pytest.mark.parametrize(("path", "error"), some(FAULTS, [0, 3]))
def test_a_fault_at_what_a_sweep_writes(config: Config, plain: Path, tmp_path: Path, path: str, error: int) -> None:
    """The sweep ends with an exit code that says so, and without a traceback; then it goes on."""
    child = sweep(config, tmp_path / "sweep", ReplaceFails(path, error))
    code = child.finish()
    assert code in (1, -signal.SIGKILL), f"exit code {code}: {child.said[-500:]}"
    ends(child, code)
    again(config, plain, tmp_path / "sweep")


def test_a_sweep_made_longer_in_its_folder(config: Config, plain: Path, tmp_path: Path) -> None:
    ends(sweep(dataclasses.replace(config, max_steps=8), tmp_path / "sweep"))
    again(config, plain, tmp_path / "sweep")


def test_two_sweeps_in_one_folder(config: Config, plain: Path, tmp_path: Path) -> None:
    """The second is told who holds the folder; the first loses nothing."""
    out = tmp_path / "sweep"
    first = sweep(config, out)
    first.until((out / "gelu-seed=1337" / "metrics.jsonl").exists, "its first run")
    first.send(signal.SIGSTOP)  # it holds the folder for as long as the second needs to come
    try:
        one_line(sweep(config, out, name="second"), 2, "is in use by process", str(first.pid))
    finally:
        first.send(signal.SIGCONT)
    ends(first)
    keep(told(out) == told(plain), f"{told(out)} is not what the undisturbed sweep says: {told(plain)}")


def again(config: Config, plain: Path, out: Path) -> None:
    """The same command without a fault: exit code 0, and what an undisturbed sweep says."""
    ends(sweep(config, out))
    keep(told(out) == told(plain), f"{told(out)} is not what the undisturbed sweep says: {told(plain)}")


def sweep(config: Config, out: Path, fault: ReplaceFails | None = None, name: str = "") -> Child:
    """compare.py with GELU and ReLU at one seed."""
    fields = arguments(dataclasses.replace(config, activation="gelu", out_dir=""))
    argv = [PRESET, "--activations", "gelu", "relu", "--out_dir", str(out), *fields]
    return Child("compare", argv, out.with_suffix(f".{name}log"), ForkJobs(fault))


def told(out: Path) -> list[Any]:
    """What a sweep's folder says, but for times: verdicts, and of each run its step, losses and weights.

    Differences to five digits: those of runs that are read from results.json are of losses with seven.
    """
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    contrasts = [(c["arm"], c["verdict"], [f"{d:.5f}" for d in c["differences"]]) for c in summary["contrasts"]]
    records = sorted(results.load(out / "results.json").records, key=lambda record: record.activation)
    runs = [(r.activation, r.config["max_steps"], r.val_loss, r.documents, r.weights_sha256) for r in records]
    return [contrasts, runs]


@dataclass(frozen=True)
class ForkJobs:
    """compare.py's workers become forks of its process, which has imported all they need; and nothing is drawn."""

    fault: ReplaceFails | None

    def __call__(self) -> None:
        launch.start_worker = Forked  # type: ignore[assignment]
        plots.figures = lambda summary: {}
        if self.fault:
            self.fault()


class Forked:
    """What launch.py needs of a subprocess.Popen."""

    def __init__(self, run: Job, logs: Path, environment: Mapping[str, str]) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.returncode: int | None = None
        parent, (orders, mine), (theirs, answers) = os.getpid(), os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(orders)
            os.close(answers)
            self.stdin, self.stdout = os.fdopen(mine, "wb"), os.fdopen(theirs, "rb")
            return
        code = 1
        try:
            os.setsid()
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            log = os.open(logs / f"{run.name}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for stream, there in ((0, orders), (1, answers), (2, log)):
                os.dup2(there, stream)
            os.close(mine)
            os.close(theirs)
            os.environ.update({**environment, launch.PARENT: str(parent)})
            code = worker.main()
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
