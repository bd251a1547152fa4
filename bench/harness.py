"""What every benchmark shares: interleaved timing, ratios, the JSON file, and the comparison of two files."""

import json
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.files import write_json
from runtime.hardware import describe

Row = dict[str, Any]
LEARNABLE = ["hermite:degree=3", "fourier:degree=5", "tropical:degree=6", "tpgu:degree=5"]  # what is compared by default
FEWEST_ROUNDS = 3  # of which a median can leave out one that something else disturbed


def turns(rounds: int, seconds: float) -> Iterator[int]:
    """0, 1, ... below `rounds`, but none after FEWEST_ROUNDS that would start later than `seconds` after the first."""
    started = time.perf_counter()
    for turn in range(rounds):
        if turn >= FEWEST_ROUNDS and time.perf_counter() - started > seconds:
            return
        yield turn


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of every call, one a turn (`turns`) and contender: a busy machine is equally busy for all.

    First calls do not count. On a GPU each call is captured as a graph and replayed, so that launching is not timed.
    """
    for call in contenders.values():
        call()
        call()
    if device.type == "cuda":
        contenders = {name: _captured(call) for name, call in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in turns(rounds, seconds):
        for name, call in contenders.items():
            times[name].append(_seconds(call, device))
    return times


def ratio(own: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of own / base, taken in the same round."""
    return statistics.median(a / b for a, b in zip(own, base, strict=True))


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second, read and written, of the best of several large copies: the ceiling of memory-bound work."""
    source = torch.randn(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best = min(_seconds(lambda: target.copy_(source), device) for _ in range(10))
    return 2 * source.nbytes / best


def save(path: Path, rows: Sequence[Row], device: torch.device, **facts: object) -> None:
    """Write the rows with machine, versions and commit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": describe(device), "commit": commit(), **facts, "rows": list(rows)}
    write_json(path, document)


def commit() -> str:
    """The checked-out commit, with `+` where code differs from it; empty without git."""
    root = Path(__file__).parents[1]
    code = ["--", ".", ":!bench/results", ":!results"]  # what benchmarks write themselves
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
        differs = subprocess.run(["git", "diff", "--quiet", "HEAD", *code], cwd=root, capture_output=True).returncode == 1
    except FileNotFoundError:
        return ""
    return head.stdout.strip() + "+" * differs


def compare(old: Path, rows: Sequence[Row], keys: Sequence[str], value: str) -> list[str]:
    """Lines that say how `value` changed since the file `old`, for rows equal in `keys`, largest change first."""
    before = {tuple(row[key] for key in keys): row[value] for row in json.loads(old.read_text())["rows"]}
    changes = []
    for row in rows:
        key = tuple(row[k] for k in keys)
        if key in before and before[key] and row[value]:
            changes.append((row[value] / before[key], f"{' '.join(map(str, key)):60} {before[key]:9.3f} -> {row[value]:9.3f}"))
    changes.sort(key=lambda change: -abs(change[0] - 1))
    return [f"{line}  x{factor:.2f}" for factor, line in changes]


def _captured(call: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # allocations outside the graph's pool must be over before the capture
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    repeats = 10
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3 / repeats
