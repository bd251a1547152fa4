"""The parts of the suite, run one after the other into a table and a JSON file."""

import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from faults.tally import Tally
from runtime import log
from runtime.hardware import describe

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


@dataclass(frozen=True)
class Result:
    """A part that has been run."""

    name: str
    tally: Tally
    seconds: float

    def row(self) -> dict[str, Any]:
        """Its line of the JSON file."""
        tally = self.tally
        return {
            "part": self.name,
            "faults": PARTS[self.name],
            "planned": max(tally.planned, tally.injected),
            "injected": tally.injected,
            "survived": tally.survived,
            "data_lost": tally.lost,
            "seconds": round(self.seconds, 1),
            "failures": tally.failures,
            "notes": tally.notes,
        }


def run(names: Sequence[str], full: bool, minutes: float, folder: Path | None = None) -> list[Result]:
    """Run parts, each in a folder of its own that is removed afterwards; none begins a fault after `minutes` in all."""
    deadline = time.monotonic() + 60 * minutes
    results = []
    for name in names:
        started = time.monotonic()
        tally = Tally(full, deadline)
        place = Path(tempfile.mkdtemp(prefix=f"faults-{name}-", dir=folder))
        with tally.judge(name, 0):
            importlib.import_module(f"faults.{name}").run(tally, place)
        shutil.rmtree(place)
        results.append(Result(name, tally, time.monotonic() - started))
        print(line(results[-1]), file=sys.stderr, flush=True)
        for failure in tally.failures:
            print(f"  {failure}", file=sys.stderr, flush=True)
    return results


def line(result: Result) -> str:
    """A row of the table, in Markdown."""
    row = result.row()
    injected = f"{row['injected']}" if row["injected"] >= row["planned"] else f"{row['injected']} of {row['planned']}"
    return f"| {row['part']} | {row['faults']} | {injected} | {row['survived']} | {row['data_lost']} |"


def table(results: Sequence[Result]) -> str:
    """The table of the README."""
    head = "| part | faults | injected | survived | data lost |\n|---|---|---|---|---|\n"
    rows = [result.row() for result in results]
    total = " | ".join(str(sum(row[name] for row in rows)) for name in ("injected", "survived", "data_lost"))
    return head + "\n".join(map(line, results)) + f"\n| all | | {total} |"


def report(results: Sequence[Result]) -> dict[str, Any]:
    """All that the JSON file holds."""
    return log.provenance() | {
        "command": ["python", "-m", "faults", *sys.argv[1:]],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "hardware": describe(torch.device("cpu")),
        "parts": [result.row() for result in results],
    }
