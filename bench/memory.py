"""The estimate of runtime/memory.py against the bytes that the allocator counts in a training step.

    python -m bench.memory [--device D] [--shape NAME ...] [--compile False] [--json PATH]

On a CPU the profiler reports every allocation of a step; measured is the peak of their sum, with parameters and moments.
It leaves out the interpreter and what malloc wastes, which the estimate leaves out too. On a GPU it is max_memory_allocated.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from bench import harness
from bench.harness import Row
from config.schema import Config
from config.tiny import config as tiny
from model import GPT
from runtime import memory, optim
from runtime.hardware import autocast, pick_device, pick_dtype, why_not_compile

SHAPES: dict[str, dict[str, Any]] = {
    "wide vocabulary": {
        "n_layer": 2,
        "n_head": 4,
        "n_embd": 256,
        "block_size": 128,
        "vocab_size": 30000,
        "micro_batch_size": 8,
    },
    "middle": {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 256, "vocab_size": 5000, "micro_batch_size": 8},
    "bytes": {"n_layer": 6, "n_head": 6, "n_embd": 192, "block_size": 128, "vocab_size": 257, "micro_batch_size": 8},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50257, "micro_batch_size": 12},
}


def main(argv: list[str] | None = None) -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description="Estimated against measured memory of a training step.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: the small ones on a CPU, gpt2 on a GPU")
    parser.add_argument("--compile", choices=["True", "False"], default="True")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    compiles = options.compile == "True" and not why_not_compile(device)
    dtypes: list[Literal["float32", "bfloat16"]] = ["float32", "bfloat16"]
    shapes = options.shape or (["gpt2"] if device.type == "cuda" else [name for name in SHAPES if name != "gpt2"])
    rows = [
        measure(name, make_config(name, device, dtype, recompute, compiles), device)
        for name in shapes
        for dtype in dtypes[device.type == "cuda" :]
        for recompute in ("none", "blocks")
    ]
    print(f"{'shape':16} {'dtype':9} {'compiled':8} {'recompute':9} {'measured MB':>11} {'estimate MB':>11} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['shape']:16} {row['dtype']:9} {row['compiled']!s:8} {row['recompute']:9} {row['measured'] / 1e6:11.1f} "
            f"{row['estimate'] / 1e6:11.1f} {row['estimate'] / row['measured']:6.2f}"
        )
    if options.json:
        harness.save(options.json, rows, device)
    return 0


def make_config(shape: str, device: torch.device, dtype: str, recompute: str, compiles: bool) -> Config:
    """A run of that shape with one micro-batch a step."""
    chosen: dict[str, Any] = {"dtype": dtype, "recompute": recompute, "compile": compiles, "device": str(device)}
    return replace(tiny, **SHAPES[shape], global_batch_size=SHAPES[shape]["micro_batch_size"], **chosen)


def measure(shape: str, config: Config, device: torch.device) -> Row:
    """A row: the estimate and the measured peak of one step, in bytes."""
    torch._dynamo.reset()
    dtype = pick_dtype(config.dtype, device)
    gpt = GPT(config.gpt(config.vocab_size)).to(device)
    if config.recompute == "blocks":
        gpt.recompute_blocks()
    if config.compile:
        gpt.compile(dynamic=False, fullgraph=True)
    trained = optim.optimizer(gpt, config, device)
    tokens = torch.zeros(config.micro_batch_size, config.block_size, dtype=torch.int64, device=device)

    def step() -> None:
        with autocast(device, dtype):
            loss = gpt(tokens, tokens)
        loss.backward()
        trained.step()
        trained.zero_grad(set_to_none=True)

    step()
    kept = sum(3 * parameter.nbytes for parameter in gpt.parameters())  # the parameter and its moments
    return {
        "shape": shape,
        "dtype": config.dtype,
        "compiled": config.compile,
        "recompute": config.recompute,
        "measured": kept + allocated(step, device),
        "estimate": memory.estimate(config, device, dtype).total,
    }


def allocated(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes that `call` holds at once beyond what there was before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = []
    left = list(profiler.profiler.kineto_results.experimental_event_tree())
    while left:
        event = left.pop()
        left += event.children
        if event.name == "[memory]":
            events.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    sizes: dict[int, int] = {}
    now = most = 0
    for _, place, size in sorted(events, key=lambda event: event[0]):
        if size > 0:
            sizes[place] = size
            now += size
            most = max(most, now)
        else:
            now -= sizes.pop(place, 0)  # what was there before the call is not ours to count
    return most


if __name__ == "__main__":
    sys.exit(main())
