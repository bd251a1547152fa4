"""The whole training step as train.py takes it: against plain PyTorch, and with learnable activations against GELU.

    python -m bench.step [--device D] [--activations SPEC ...] [--rounds N] [--json PATH] [--against OLD.json]
    python -m bench.step --quality [--seeds N]      the same tokens: does speed cost validation loss?

`plain` is the same model as nanoGPT runs it on a CPU by default: float32, not compiled, torch's default AdamW, batches
read when they are needed. All others are train.py's defaults. Each contender is a process of its own, so that its
memory can be told; they take their steps in turns, one process at a time.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import activations
import train
from bench import harness
from bench.harness import Row
from config import arm
from config.schema import Config
from data.batches import Batch, Prefetcher
from data.corpora import plan_pystdlib
from data.shards import header
from data.sources import read_documents
from runtime import profiling
from runtime.hardware import measured_peak_flops, peak_memory_bytes, pick_device
from runtime.run import Run
from runtime.setup import set_up

SHAPES: dict[str, dict[str, Any]] = {
    # 6 layers, 384 wide, 4,096 tokens a step: what issue and README compare on CPUs.
    "cpu": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 256, "global_batch_size": 16},
    # GPT-2 124M, one micro-batch of nanoGPT's recipe.
    "cuda": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257, "global_batch_size": 12},
    "quality": {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, "vocab_size": 256, "global_batch_size": 8},
    "tiny": {"n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 256, "global_batch_size": 2},
}
PLAIN = "plain"
PROFILE = -1  # told to a contender in the place of a number of steps
PROFILED = 3


def main(argv: list[str] | None = None) -> int:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description="Time of the whole training step.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", choices=SHAPES, default="", help="default: that of the device")
    parser.add_argument(
        "--activations",
        nargs="*",
        default=harness.LEARNABLE,
        metavar="SPEC",
        help="compared with gelu: an activation, swiglu, or gated(SPEC)",
    )
    parser.add_argument("--rounds", type=int, default=11, help="turns that each contender gets, time permitting")
    parser.add_argument("--seconds", type=float, default=90, help="start no further turn after this many seconds of them")
    parser.add_argument("--quality", action="store_true", help="compare validation losses instead of times")
    parser.add_argument("--seeds", type=int, default=3, help="for --quality")
    parser.add_argument("--max_steps", type=int, default=150, help="for --quality")
    parser.add_argument("--threads", type=int, help="CPU threads; fewer than the cores where other programs run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--against", type=Path, metavar="OLD.json", help="show what changed since that file")
    options = parser.parse_args(argv)
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)  # the contenders' processes read it
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_shards(Path(folder))
        if options.quality:
            config = make_config(options.shape or "quality", Path(folder), device, options.max_steps)
            rows = compare_losses(config, options.seeds)
            show_quality(rows)
        else:
            config = make_config(options.shape or device.type, Path(folder), device)
            names = [PLAIN] * (device.type == "cpu") + ["gelu", *options.activations]
            rows = compare_times(config, names, options.rounds, options.seconds)
            show_times(rows)
            if options.against:
                print("\n".join(harness.compare(options.against, rows, ("contender", "shape"), "ms_per_step")))
    if options.json:
        harness.save(options.json, rows, device)
    return 0


def make_config(shape: str, folder: Path, device: torch.device, max_steps: int = 1000) -> Config:
    """train.py's defaults at one of SHAPES, on the shards in `folder`."""
    return Config(
        **SHAPES[shape],
        micro_batch_size=SHAPES[shape]["global_batch_size"],
        bias=False,
        data_dir=str(folder),
        tokenizer="none",  # bytes of text without end-of-text: 256 ids, where the bytes tokenizer has 257
        max_steps=max_steps,
        eval_interval=max_steps,
        checkpoint_interval=max_steps,
        learning_rate=1e-3,
        min_lr=1e-4,
        warmup_steps=min(20, max_steps),
        weight_decay=0.1,
        beta2=0.99,
        out_dir=str(folder / "run"),
        device=str(device),
    )


def contender(config: Config, name: str) -> Config:
    """`plain`, or train.py's defaults with an activation, which may be the gate of a gated MLP: swiglu, gated(SPEC)."""
    config = replace(config, out_dir=str(Path(config.out_dir) / arm.file_name(name)))
    return replace(config, dtype="float32", compile=False) if name == PLAIN else replace(config, **arm.fields(name))


def compare_times(config: Config, names: list[str], rounds: int, limit: float = math.inf) -> list[Row]:
    """A row for each contender; ratios are medians over the rounds, fewer where `limit` seconds are over (harness.turns)."""
    spawn = multiprocessing.get_context("spawn")
    steps = 1 if config.device == "cpu" else 10
    workers: dict[str, tuple[Any, Any]] = {}
    try:
        for name in names:
            here, there = spawn.Pipe()
            process = spawn.Process(target=work, args=(there, contender(config, name), name == PLAIN), daemon=True)
            process.start()
            there.close()
            workers[name] = (process, here)
        facts = {name: here.recv() for name, (_, here) in workers.items()}
        for fact in facts.values():  # measured here and now, while every contender waits
            fact["peak_flops"] = measured_peak_flops(torch.device(config.device), getattr(torch, fact["dtype"]))
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in harness.turns(rounds, limit):
            for name, (_, here) in workers.items():
                here.send(steps)
                seconds[name].append(here.recv())
        for name, (process, here) in workers.items():
            here.send(PROFILE)
            facts[name] |= here.recv()
            here.send(0)
            facts[name] |= here.recv()
            process.join()
    finally:
        for process, _ in workers.values():
            process.kill()
    return [
        {
            "contender": name,
            "shape": f"{config.n_layer} x {config.n_embd}, block {config.block_size}, batch {config.global_batch_size}",
            "ms_per_step": 1e3 * statistics.median(times),
            "against_gelu": harness.ratio(times, seconds["gelu"]),
            "tokens_per_second": config.tokens_per_step / statistics.median(times),
            "mfu": facts[name]["flops_per_step"] / statistics.median(times) / facts[name]["peak_flops"],
            "rounds_ms": [1e3 * s for s in times],
        }
        | facts[name]
        for name, times in seconds.items()
    ]


def work(pipe: Connection, config: Config, is_plain: bool) -> None:
    """A contender: takes as many steps as it is told, answers with the seconds of one; told 0, with its peak memory."""
    profiling.name_kernels()
    with (
        mock.patch("runtime.setup.retain_memory") if is_plain else contextlib.nullcontext()
    ):  # plain PyTorch leaves malloc alone
        run = set_up(config)
    with run.resources:
        device = run.processes.device
        batches: Iterator[Batch]
        if is_plain:
            torch.set_float32_matmul_precision("highest")
            groups = activations.parameter_groups(run.gpt, config.learning_rate, config.weight_decay)
            run.optimizer = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2))
            batches = (run.read_batch(step) for step in count())
        else:
            batches = run.resources.enter_context(Prefetcher(run.read_batch))
        steps = enumerate(batches)
        started = time.perf_counter()
        run.warm_up()
        warm_up_s = time.perf_counter() - started
        take_steps(run, steps, 2)
        reset_peak_memory(device)
        pipe.send(
            {
                "flops_per_step": run.gpt.flops_per_token() * config.tokens_per_step,
                "dtype": str(run.dtype).removeprefix("torch."),
                "warm_up_s": warm_up_s,
            }
        )
        while number := pipe.recv():
            if number == PROFILE:
                pipe.send({"parts_ms": profile_steps(run, steps)})
                continue
            started = time.perf_counter()
            take_steps(run, steps, number)
            pipe.send((time.perf_counter() - started) / number)
        pipe.send({"peak_memory_bytes": peak_memory(device)})


def profile_steps(run: Run, steps: Iterator[tuple[int, Batch]]) -> dict[str, float]:
    """Milliseconds of each part of a step, over PROFILED steps."""
    device = run.processes.device
    profiler = profiling.start(device)
    started = time.perf_counter()
    take_steps(run, steps, PROFILED)
    seconds = time.perf_counter() - started
    profiling.stop(profiler, device)
    return profiling.parts(profiler, seconds, PROFILED, device)


def take_steps(run: Run, steps: Iterator[tuple[int, Batch]], number: int) -> None:
    """train.py's step; reading the gradient norm, it waits for the device."""
    for _ in range(number):
        step, batch = next(steps)
        train.take_step(run, step, batch)


def reset_peak_memory(device: torch.device) -> None:
    """Forget what compiling took, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Most bytes held since then: allocated on a GPU, else resident in this process."""
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.exists():
        return peak_memory_bytes(device)
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def compare_losses(config: Config, seeds: int) -> list[Row]:
    """A row a seed: validation losses of whole runs, the same tokens and initial weights for both."""
    rows = []
    for seed in range(seeds):
        row: Row = {"seed": seed}
        for name in (PLAIN, "gelu"):
            run = set_up(replace(contender(config, name), seed=seed, out_dir=f"{config.out_dir}/{name}{seed}"))
            with run.resources:
                train.train(run)
            evaluation = run.evaluation_at(run.progress.step)
            assert evaluation is not None, "a run ends with an evaluation"
            row[name] = evaluation["val_loss"]
        rows.append(row)
    return rows


def write_shards(folder: Path) -> None:
    """Bytes of the standard library's sources as foreign shards: a corpus that is there, with text in it."""
    text = "".join(filter(None, read_documents(plan_pystdlib(0.02).open(Path(), "").parts))).encode()[:4_000_000]
    tokens = np.frombuffer(text, dtype=np.uint8).astype("<u2")
    for split, part in (("val", tokens[:100_000]), ("train", tokens[100_000:])):
        (folder / f"{split}_000000.bin").write_bytes(header(part.size) + part.tobytes())


def show_times(rows: list[Row]) -> None:
    """The table of compare_times."""
    print(f"{'contender':20} {'dtype':9} {'ms a step':>9} {'/gelu':>6} {'tokens/s':>9} {'of matmul peak':>14} {'peak MB':>8}")
    for row in rows:
        print(
            f"{row['contender']:20} {row['dtype']:9} {row['ms_per_step']:9.1f} {row['against_gelu']:6.3f} "
            f"{row['tokens_per_second']:9.0f} {row['mfu']:14.2f} {row['peak_memory_bytes'] / 1e6:8.0f}"
        )
    print("\nshare of each part of a step; of peak: FLOPs over the time of products and attention, over the peak")
    for row in rows:
        total = sum(row["parts_ms"].values())
        products = row["parts_ms"]["matrix products"] + row["parts_ms"]["attention"]
        shares = ", ".join(f"{part} {ms / total:.0%}" for part, ms in row["parts_ms"].items() if ms / total >= 0.005)
        speed = row["flops_per_step"] / (products / 1e3) / row["peak_flops"] if products else 0.0
        print(f"{row['contender']:20} {shares}; of peak {speed:.2f}")


def show_quality(rows: list[Row]) -> None:
    """The table of compare_losses, and the difference beside the spread over seeds."""
    print(f"{'seed':>4} {PLAIN:>8} {'defaults':>8} {'difference':>10}")
    for row in rows:
        print(f"{row['seed']:4} {row[PLAIN]:8.4f} {row['gelu']:8.4f} {row['gelu'] - row[PLAIN]:+10.4f}")
    difference = statistics.fmean(row["gelu"] - row[PLAIN] for row in rows)
    spread = statistics.stdev(row[PLAIN] for row in rows) if len(rows) > 1 else float("nan")
    print(f"mean difference {difference:+.4f} nats; one standard deviation over seeds {spread:.4f}")


if __name__ == "__main__":
    sys.exit(main())
