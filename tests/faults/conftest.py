"""The fault suite: each test marked `fault` injects faults into real processes. Their counts are a table and a JSON file."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from config.schema import Config
from data.files import write_json
from runtime import log
from runtime.hardware import describe
from tests.processes import trained
from tests.runs import DataLostError, small_config

PARTS = {
    "kill": "SIGKILL at random moments and inside checkpoint writing, 1 and 2 processes",
    "preemption": "SIGTERM, SIGINT, SIGUSR1, SIGHUP; killed and hanging ranks under torchrun, a lost node",
    "disk": "ENOSPC, EIO and a file-size limit in checkpoints, metrics and shards",
    "data": "damaged, wrong, changed, empty and too small shards and meta.json",
    "numbers": "non-finite weights, losses, gradients; overflow in float16; spikes; runaway coefficients",
    "ranks": "rank 1 with another setting, data, code or checkpoint; failing or lost in set-up; non-finite alone",
    "damage": "flipped bits, cut and swapped files of checkpoints, hostile optimizer states",
    "strangers": "hostile checkpoints, shards, inputs and links",
    "mutations": "random command lines of train.py, sample.py, compare.py, data.prepare",
    "sweeps": "compare.py killed or out of disk at checkpoints and records, made longer, two in one folder",
    "concurrency": "two processes in one folder; stale locks",
    "endurance": "thousands of steps: memory, open files, step time",
    "reproducibility": "the same config and seed twice; what run.json records",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-json", type=Path, help="write what came of the faults here")
    parser.addoption("--faults-minutes", type=float, default=60.0, help="begin no further fault after this time")


@pytest.fixture(scope="session")
def deadline(pytestconfig: pytest.Config) -> float:
    """time.monotonic() after which no further fault begins."""
    return time.monotonic() + 60 * float(pytestconfig.getoption("--faults-minutes", 60.0))


@pytest.fixture(autouse=True)
def in_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        pytest.skip("there was no time left")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of the part's own, removed at its end."""
    place = tmp_path_factory.mktemp("faults")
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def base(folder: Path, data_dir: Path) -> Config:
    """The small run in that folder."""
    return small_config(data_dir, folder / "run")


@pytest.fixture(scope="module")
def eight_steps(base: Config) -> Config:
    """A run of twelve steps that has been trained to step 8, with checkpoints of the steps 4 and 8."""
    changed = dataclasses.replace(base, max_steps=8, lr_decay_steps=12, eval_interval=4, checkpoint_interval=4)
    return trained(dataclasses.replace(changed, keep_checkpoints=3))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.excinfo and call.excinfo.errisinstance(DataLostError):
        report.user_properties.append(("lost", 1))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table of the README, and the JSON file where one is wanted."""
    found = results([r for reports in terminalreporter.stats.values() for r in reports if isinstance(r, pytest.TestReport)])
    if found:
        terminalreporter.write_line("\n" + table(found))
    if found and (path := config.getoption("--faults-json", None)):
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "hardware": describe(torch.device("cpu"))}
        command = ["python", "-m", "pytest", *sys.argv[1:]]
        write_json(path, log.provenance() | {"command": command} | facts | {"parts": found})


def results(reports: list[pytest.TestReport]) -> list[dict[str, Any]]:
    """A row for each part: a test counts as one fault, or as many as its property `faults` says; skipped ones were planned."""
    rows = []
    for name, faults in PARTS.items():
        own = [r for r in reports if f"test_{name}.py::" in r.nodeid and "fault" in r.keywords]
        row: dict[str, Any] = {"part": name, "faults": faults, "planned": 0, "injected": 0, "survived": 0, "data_lost": 0}
        row |= {"seconds": round(sum(r.duration for r in own), 1), "failures": [], "notes": []}
        for report in own:
            told: dict[str, Any] = dict(report.user_properties)
            count = told.get("faults", 1) if report.when == "call" or not report.passed else 0
            row["planned"] += count
            row["injected"] += count * (not report.skipped)
            row["survived"] += count * report.passed
            row["data_lost"] += told.get("lost", 0)
            case = report.nodeid.partition("::")[2]
            row["failures"] += [f"{case}: {' '.join(report.longreprtext.split())[-1500:]}"] if report.failed else []
            row["notes"] += [f"{case}: {report.longrepr[2]}"] if isinstance(report.longrepr, tuple) else []
            row["notes"] += [told["note"]] if report.when == "call" and "note" in told else []
        rows += [row] if own else []
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, and their sum."""
    lines = ["| part | faults | injected | survived | data lost |", "|---|---|---|---|---|"]
    for row in rows:
        of = f" of {row['planned']}" if row["injected"] < row["planned"] else ""
        lines.append(f"| {row['part']} | {row['faults']} | {row['injected']}{of} | {row['survived']} | {row['data_lost']} |")
    total = " | ".join(str(sum(row[name] for row in rows)) for name in ("injected", "survived", "data_lost"))
    return "\n".join([*lines, f"| all | | {total} |"])
