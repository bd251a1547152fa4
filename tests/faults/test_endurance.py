"""Thousands of steps: memory, open files and the time of a step stay what they were."""

import dataclasses
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from config.schema import Config
from tests.faults.forms import some
from tests.processes import ends, trainer
from tests.runs import rows

GROWTH = 0.02  # of the resident memory, over the later three quarters of the run: far below one leaked batch a step
SLOWER = 1.25  # median time of a step in the last quarter over that in the second; other programs take their share, too


@pytest.mark.fault
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("steps", "interval"), some([(300, 0.05), (5000, 0.5)], slice(1)))
def test_steps_cost_what_they_cost(
    base: Config, steps: int, interval: float, record_property: Callable[[str, object], None]
) -> None:
    """One run, watched from outside. The time of a step is judged over thousands: of a few, other programs' share says more."""
    record_property("faults", 2 + (steps > 1000))
    config = dataclasses.replace(
        base, out_dir=f"{base.out_dir}-{steps}", max_steps=steps, micro_batch_size=12, eval_interval=steps // 10,
        checkpoint_interval=steps // 20, telemetry_interval=steps // 10,
    )  # fmt: skip
    child = trainer(config)
    memory, files = [], []
    while child.alive:
        if rows(config):
            memory.append(resident_bytes(child.pid))
            files.append(open_files(child.pid))
        time.sleep(interval)
    ends(child)
    times = [row["ms_per_step"] for row in rows(config) if "ms_per_step" in row]
    memory, files = ([value for value in found[len(found) // 4 : -1] if value] for found in (memory, files))
    growth = float(np.polyfit(np.arange(len(memory)), memory, 1)[0]) * len(memory) / memory[0]
    second, last = (statistics.median(times[i * steps // 4 : (i + 1) * steps // 4]) for i in (1, 3))
    record_property(
        "note",
        f"{steps} steps: memory {memory[0] / 2**20:.1f} to {memory[-1] / 2**20:.1f} MiB (slope {100 * growth:.2f} %), "
        f"open files {min(files)} to {max(files)}, median step {second:.2f} to {last:.2f} ms",
    )
    assert abs(growth) < GROWTH, f"resident memory grew by {100 * growth:.2f} % of {memory[0]:,} bytes"
    assert max(files) <= files[0] + 3, f"open files grew from {files[0]} to {max(files)}"  # a checkpoint's own come and go
    assert steps < 1000 or last / second < SLOWER, f"a step took {second:.2f} ms, later {last:.2f} ms"


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where it has ended."""
    path = Path(f"/proc/{pid}/statm")
    fields = path.read_text().split() if path.exists() else []
    return int(fields[1]) * resource.getpagesize() if fields else 0


def open_files(pid: int) -> int:
    """How many files a process has open; 0 where it has ended."""
    path = Path(f"/proc/{pid}/fd")
    return len(os.listdir(path)) if path.exists() else 0
