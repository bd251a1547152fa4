"""Seconds until a run speaks, has evaluated, has compiled, has taken its first step and has ended: without and with a cache.

`CPU`: the CPU seconds of the run and of the C++ compilers that it starts, which other programs on the machine change little.

    python -m bench.start [--preset FILE.py] [--steps N] [--repeats N] [--json PATH] [--field value ...]

Each run is train.py in a process of its own, as a user starts it; other fields go to it as they are. `cold`: its folder of
compiled code is empty, and so is the folder for temporary files, where PyTorch keeps compiled headers. `warm`: both are those
of the run before. The preset's data have to be prepared: python -m data.prepare pystdlib.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import harness
from bench.harness import Row

ROOT = Path(__file__).parents[1]
MOMENTS = {
    "first line": "model ",
    "evaluated": "step 0: val_loss",
    "compiled": "compiled in",
    "first step": "step 1: train_loss",
}
"""Moments of a run, and how the line begins that tells of each."""
COLUMNS = (*MOMENTS, "end", "CPU")


def main(argv: list[str] | None = None) -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Seconds to the first step.")
    parser.add_argument("--preset", default=str(ROOT / "config" / "tiny_hermite.py"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="cold and warm runs in turns")
    parser.add_argument("--json", type=Path)
    options, fields = parser.parse_known_args(argv)
    rows = []
    print(f"{'cache':6}" + "".join(f"{name:>12}" for name in COLUMNS))
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = ["--compile_cache", str(Path(folder) / "cache"), "--max_steps", str(options.steps), "--log_interval", "1"]
            for state in ("cold", "warm"):
                out = ["--out_dir", str(Path(folder) / state)]
                rows.append({"cache": state} | timed([str(ROOT / "train.py"), options.preset, *cache, *out, *fields], folder))
                print(line(rows[-1]), flush=True)
    for state in ("cold", "warm"):
        print(line(median([row for row in rows if row["cache"] == state])), "median")
    if options.json:
        harness.save(options.json, rows, torch.device("cpu"), preset=options.preset, steps=options.steps)
    return 0


def timed(arguments: Sequence[str], temporary: str) -> Row:
    """Seconds from the start of a Python program until each moment, and until it ends. RuntimeError where it fails."""
    started, before, found, said = time.perf_counter(), cpu_seconds(), dict.fromkeys(MOMENTS, float("nan")), ""
    command, environment = [sys.executable, *arguments], os.environ | {"TMPDIR": temporary}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment) as process:
        assert process.stderr is not None, "it is a pipe"
        for said in process.stderr:
            for name, beginning in MOMENTS.items():
                if said.startswith(beginning):
                    found[name] = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {said.strip()}")
    return found | {"end": time.perf_counter() - started, "CPU": cpu_seconds() - before}


def cpu_seconds() -> float:
    """CPU seconds of all processes that this one has started and that have ended, and of theirs."""
    used = os.times()
    return used.children_user + used.children_system


def median(rows: Sequence[Row]) -> Row:
    """The median of each moment."""
    return {"cache": rows[0]["cache"]} | {name: statistics.median(row[name] for row in rows) for name in COLUMNS}


def line(row: Row) -> str:
    """A row of the table."""
    return f"{row['cache']:6}" + "".join(f"{row[name]:12.1f}" for name in COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
