"""Everything that a machine with a GPU can tell, in nine minutes: `make gpu`, or

    python -m bench.gpu [--device D] [--small] [--parts NAME ...] [--out FOLDER]

Each part is a process of its own that ends at its limit and leaves what it has measured so far, so there is always a result.
It needs no network. One JSON and one chart are written, named after the device. --small runs the same on tiny shapes and
uncompiled, as CI does on the CPU.
"""

import argparse
import functools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import activations
import train
from activations import registry
from activations.activation import Learnable
from bench import activations as bench_activations
from bench import generate, gradients, harness, memory
from bench import step as bench_step
from bench.harness import Row
from config.schema import Config, GPTConfig
from data.batches import Prefetcher
from data.files import write_atomically, write_json
from runtime import checkpoint, distributed
from runtime.hardware import describe, peak_flops, peak_memory_bytes, pick_device, pick_dtype, retain_memory
from runtime.memory import estimate
from runtime.run import Run
from runtime.setup import exchange_gradients, set_up

LIMITS = {
    "activations": 70, "step": 150, "sharding": 70, "memory": 40, "generation": 60, "determinism": 40, "resume": 30,
    "gradients": 80,
}  # fmt: skip
"""Seconds of each part, nine minutes in all with what lies between."""
STEPS = 10  # timed steps of a contender


@dataclass(frozen=True)
class Place:
    """Where and how large the parts run, and a folder for what they need."""

    device: torch.device
    small: bool
    folder: Path

    @functools.cached_property
    def config(self) -> Config:
        """train.py's defaults on a text: 124M on a GPU, 6 x 384 on a CPU, or tiny and uncompiled."""
        data = self.folder / "data"
        if not data.exists():
            data.mkdir()
            bench_step.write_shards(data)
        config = bench_step.make_config("tiny" if self.small else self.device.type, data, self.device)
        return replace(config, compile=not self.small, compile_cache=str(self.folder / "cache"), eval_tokens=4096)

    @property
    def families(self) -> list[str]:
        """GELU first, then every learnable family at its defaults."""
        learnable = [name for name in registry.names() if issubclass(registry.family(name), Learnable)]
        return ["gelu", *(learnable[:2] if self.small else learnable)]


def main(argv: list[str] | None = None) -> int:
    """Run the parts, print what they give, and write the JSON and the chart. 1 where a part failed or found a difference."""
    parser = argparse.ArgumentParser(description="Everything that a GPU can tell, in nine minutes.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="tiny shapes, uncompiled: for a test on a CPU")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--limit", type=float, default=0, help="seconds of each part, instead of its own limit")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    if options.part:
        run_part(options.part, Place(device, options.small, options.folder))
        return 0
    started, found = time.perf_counter(), {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name in options.parts:
            found[name] = watch(name, device, options.small, Path(folder), options.limit or LIMITS[name])
            print(f"\n{name}: {found[name]['ended']} after {found[name]['seconds']:.0f} s", flush=True)
            for row in found[name]["rows"]:
                print("  " + "  ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
    document = {"machine": describe(device), "commit": harness.commit(), "small": options.small}
    document |= {"seconds": time.perf_counter() - started, "parts": found}
    path = options.out / f"{file_name(document['machine']['device'])}{'-small' if options.small else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document)
    draw(document, path.with_suffix(".png"))
    print(f"\n{path} and {path.with_suffix('.png')} hold this; {document['seconds']:.0f} s in all")
    good = all(part["ended"] in ("done", "stopped at its limit") for part in found.values())
    return 0 if good and all(row.get("good", True) for part in found.values() for row in part["rows"]) else 1


def file_name(device: str) -> str:
    """A device's name as a file's: nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def shown(value: object) -> str:
    """A value of a row, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def watch(name: str, device: torch.device, small: bool, folder: Path, limit: float) -> dict[str, Any]:
    """A part in a process of its own: its rows, how it ended, and its seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "bench.gpu", "--part", name, "--device", str(device), "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, *["--small"] * small],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit)
        ended = "done" if process.returncode == 0 else f"failed: {last_line(said)}"
    except subprocess.TimeoutExpired:
        ended = "stopped at its limit"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.communicate()
    rows = folder / f"{name}.json"
    return {
        "ended": ended,
        "seconds": time.perf_counter() - started,
        "rows": json.loads(rows.read_text()) if rows.exists() else [],
    }


def last_line(said: str) -> str:
    """What a process said last."""
    lines = said.strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def run_part(name: str, place: Place) -> None:
    """In the child: write the rows of a part as they come."""
    if place.device.type == "cpu":
        retain_memory()
    rows: list[Row] = []
    for row in PARTS[name](place):
        rows.append(row)
        write_json(place.folder / f"{name}.json", rows)


def time_activations(place: Place) -> Iterator[Row]:
    """Forward and backward of every family against GELU and against the copying speed."""
    device, specs = place.device, [registry.check(spec) for spec in place.families if spec != "gelu"]
    bandwidth = harness.copy_bandwidth(device, 4 if place.small else 256)
    shapes = [(4, 64)] if place.small else bench_activations.SHAPES.get(device.type, bench_activations.SHAPES["cpu"])
    for shape in shapes[-1:]:
        for dtype in (torch.bfloat16, torch.float32)[place.small :]:
            kept = ("activation", "mode", "dtype", "shape", "ms", "against_base", "against_floor", "repeatable", "error")
            for row in bench_activations.measure(specs, shape, dtype, device, 11, bandwidth, 10):
                yield {"copy_GB_per_s": bandwidth / 1e9} | {key: row[key] for key in kept if key in row}


def time_steps(place: Place) -> Iterator[Row]:
    """train.py's step with each family; GELU comes first and last, and its mean is the base."""
    seconds: dict[str, float] = {}
    for spec in [*place.families, "gelu"]:
        row = timed_run(place, spec, activation=spec)
        first = seconds.setdefault(spec, row["seconds"])
        yield row | {"against_gelu": row["seconds"] / seconds["gelu"]} | ({"drift": row["seconds"] / first} if first else {})


def timed_run(place: Place, name: str, in_group: bool = False, **changes: Any) -> Row:
    """Median of STEPS steps of a run with these fields, with tokens a second, MFU and memory.

    `in_group`: under DDP in a process group of one, as train.py is in one of several.
    """
    torch._dynamo.reset()
    config = replace(place.config, out_dir=str(place.folder / f"step-{file_name(name)}-{time.time_ns()}"), **changes)
    run = set_up(config)
    with run.resources:
        if in_group:
            distributed.join(config.device, config.backend, config.timeout_s, alone=True)
            run.model = exchange_gradients(run.compiled, run.processes)
        started = time.perf_counter()
        run.warm_up()
        warm_up = time.perf_counter() - started
        bench_step.reset_peak_memory(run.processes.device)
        with Prefetcher(run.read_batch) as batches:
            times, losses = [], []
            for step, batch in enumerate(batches):
                started = time.perf_counter()
                losses.append(float(train.take_step(run, step, batch)[0]))
                times.append(time.perf_counter() - started)
                if step == STEPS + 2:
                    break
        median = statistics.median(times[2:])
        flops = run.gpt.flops_per_token() * config.tokens_per_step
        return {
            "name": name,
            "engine": type(run.model).__name__,
            "seconds": median,
            "tokens_per_second": config.tokens_per_step / median,
            "mfu": flops / median / peak(run),
            "warm_up_s": warm_up,
            "peak_memory_GiB": peak_memory_bytes(run.processes.device) / 2**30,
            "estimate_GiB": estimate(run.config, run.processes.device, run.dtype).total / 2**30,
            "last_loss": losses[-1],
        }


def peak(run: Run) -> float:
    """Peak FLOP/s of the run's device in its type."""
    return peak_flops(run.processes.device, run.dtype)[0]


def time_sharding(place: Place) -> Iterator[Row]:
    """The same step under DDP and under FSDP, each in a group of one process; without a group, and with recomputed blocks.

    The losses agree.
    """
    first = None
    contenders: dict[str, dict[str, Any]] = {
        "ddp": {"in_group": True},
        "fsdp": {"parallelism": "fsdp"},
        "one process": {},
        "recompute": {"recompute": "blocks"},
    }
    for name, changes in contenders.items():
        row = timed_run(place, name, **changes)
        first = first or row
        loss = abs(row["last_loss"] / first["last_loss"] - 1)
        yield row | {"against_ddp": row["seconds"] / first["seconds"], "loss_difference": loss, "good": loss < 1e-2}


def measure_memory(place: Place) -> Iterator[Row]:
    """The estimate against the measured peak, with and without recomputation."""
    shape = "bytes" if place.small else "gpt2" if place.device.type == "cuda" else "middle"
    for recompute in ("none", "blocks"):
        dtype = "float32" if place.small else str(pick_dtype("auto", place.device)).removeprefix("torch.")
        row = memory.measure(
            shape, memory.make_config(shape, place.device, dtype, recompute, place.config.compile), place.device
        )
        yield row | {"ratio": row["estimate"] / row["measured"]}


def time_generation(place: Place) -> Iterator[Row]:
    """Cached generation against `transformers`, where that is installed."""
    config = GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
    if place.small:
        config = GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=64, vocab_size=100)
    dtype = pick_dtype("float32" if place.small else "auto", place.device)
    kept = ("contender", "dtype", "tokens_per_second", "against_recomputed", "against_transformers", "share_of_ceiling")
    rows = generate.measure(
        config, [], place.device, dtype, 17 if place.small else 256, 2 if place.small else 8, not place.small
    )
    for row in rows:
        yield {key: row[key] for key in kept}


def check_determinism(place: Place) -> Iterator[Row]:
    """Two runs with `deterministic` on, to the bit."""
    yield same_bits("two runs", *(finished(place, f"run{number}") for number in (1, 2)))


def check_resume(place: Place) -> Iterator[Row]:
    """A run that stops half-way and goes on, and the one that never stopped, to the bit."""
    whole = finished(place, "whole")
    finished(place, "parts", max_steps=2)
    yield same_bits("a resume", whole, finished(place, "parts"))


def finished(place: Place, name: str, **changes: Any) -> Config:
    """A deterministic run of four steps to its end."""
    chosen: dict[str, Any] = {"max_steps": 4, "lr_decay_steps": 4, "warmup_steps": 2, "eval_interval": 2, "deterministic": True}
    chosen |= {"activation": "hermite:degree=3", "checkpoint_interval": 2, "out_dir": str(place.folder / name)}
    config = replace(place.config, **chosen | changes)
    run = set_up(config)
    with run.resources:
        assert train.train(run) == 0, "the run ends well"
    return config


def same_bits(name: str, a: Config, b: Config) -> Row:
    """Whether the last weights of two runs are equal to the bit."""
    one, other = (checkpoint.load_model(config.out_dir, "last")[0].state_dict() for config in (a, b))
    different = [key for key, value in one.items() if not torch.equal(value, other[key])]
    return {"name": name, "different_tensors": len(different), "of": len(one), "good": not different}


def check_gradients(place: Place) -> Iterator[Row]:
    """Compiled against eager values and gradients, every family at every degree, the least degrees of all families first."""
    for specs in gradients.batches(4 if place.small else 8, 2 if place.small else 0):
        yield from gradients.compare(specs, place.device, "aot_eager" if place.small else "inductor")


PARTS: dict[str, Callable[[Place], Iterator[Row]]] = {
    "activations": time_activations, "step": time_steps, "sharding": time_sharding, "memory": measure_memory,
    "generation": time_generation, "determinism": check_determinism, "resume": check_resume, "gradients": check_gradients,
}  # fmt: skip


def draw(document: dict[str, Any], path: Path) -> None:
    """Bars: each activation's time over the bandwidth floor, and each step's over GELU's, with tokens a second and MFU."""
    from matplotlib.figure import Figure

    def rows(part: str) -> list[Row]:
        return list(document["parts"].get(part, {"rows": []})["rows"])

    kernels = [row for row in rows("activations") if row["mode"] != "eager"] or rows("activations")
    steps = {row["name"]: row for row in reversed(rows("step"))}
    figure = Figure(figsize=(11, 0.32 * max(len(kernels), len(steps), 6) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [f"{activations.registry.short_name(row['activation']).partition(',')[0]} {row['dtype']}" for row in kernels]
    bars = left.barh(names, [row["against_floor"] for row in kernels], color="#0072B2")
    left.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
    left.axvline(1, color="black", linewidth=0.8)
    left.set(title="forward + backward", xlabel="time / bandwidth floor")
    bars = right.barh(list(steps), [row["against_gelu"] for row in steps.values()], color="#E69F00")
    labels = [f"{row['tokens_per_second']:,.0f} tokens/s, MFU {row['mfu']:.0%}" for row in steps.values()]
    right.bar_label(bars, labels, fontsize=7, padding=2)
    right.axvline(1, color="black", linewidth=0.8)
    right.set(title="training step", xlabel="time / GELU's")
    for axes in (left, right):
        axes.margins(x=0.3)
        axes.tick_params(labelsize=7)
        axes.invert_yaxis()
    figure.suptitle(document["machine"]["device"], fontsize=10)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


if __name__ == "__main__":
    sys.exit(main())
