"""Thousands of steps: memory, open files and the time of a step stay what they were."""

import dataclasses
import os
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from faults.process import trainer
from faults.runs import rows, small_config, write_shards
from faults.tally import Tally, expect

STEPS = 5000, 300
GROWTH = 0.02  # of the resident memory, over the later three quarters of the run: far below one leaked batch a step
SLOWER = 1.25  # median time of a step in the last quarter over that in the second; other programs take their share, too


def run(tally: Tally, folder: Path) -> None:
    """One run, watched from outside."""
    data_dir = folder / "data"
    data_dir.mkdir()
    steps = STEPS[0] if tally.full else STEPS[1]
    config = dataclasses.replace(
        small_config(write_shards(data_dir), folder / "run"),
        max_steps=steps, eval_interval=steps // 10, checkpoint_interval=steps // 20, telemetry_interval=steps // 10,
        micro_batch_size=12,
    )  # fmt: skip
    tally.plan(3, 2)
    child = trainer(config, folder / "run.log")
    memory, files = [], []
    while child.alive:
        if rows(config):
            memory.append(resident_bytes(child.pid))
            files.append(open_files(child.pid))
        time.sleep(0.05 if steps < 1000 else 0.5)
    expect(child.finish() == 0, f"the run failed: {child.said[-500:]}")
    times = [row["ms_per_step"] for row in rows(config) if "ms_per_step" in row]
    memory, files = ([value for value in found[len(found) // 4 : -1] if value] for found in (memory, files))
    growth = slope(memory) * len(memory) / memory[0]
    second, last = (statistics.median(times[i * steps // 4 : (i + 1) * steps // 4]) for i in (1, 3))
    tally.notes.append(
        f"{steps} steps: memory {memory[0] / 2**20:.1f} to {memory[-1] / 2**20:.1f} MiB (slope {100 * growth:.2f} %), "
        f"open files {min(files)} to {max(files)}, median step {second:.2f} to {last:.2f} ms"
    )
    with tally.fault("memory"):
        expect(abs(growth) < GROWTH, f"resident memory grew by {100 * growth:.2f} % of {memory[0]:,} bytes")
    with tally.fault("open files"):
        expect(max(files) <= files[0] + 3, f"open files grew from {files[0]} to {max(files)}")  # a checkpoint's own come and go
    if not tally.full:
        return  # seconds on a machine that others share say nothing of time
    with tally.fault("step time"):
        expect(last / second < SLOWER, f"a step took {second:.2f} ms, later {last:.2f} ms")


def slope(values: list[int]) -> float:
    """Least-squares slope, a sample."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0])


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where it has ended."""
    path = Path(f"/proc/{pid}/statm")
    fields = path.read_text().split() if path.exists() else []
    return int(fields[1]) * resource.getpagesize() if fields else 0


def open_files(pid: int) -> int:
    """How many files a process has open; 0 where it has ended."""
    path = Path(f"/proc/{pid}/fd")
    return len(os.listdir(path)) if path.exists() else 0
