"""How much memory a training step takes, before it is taken: a config that cannot fit is bad input, not a killed process.

With N = micro_batch_size * block_size tokens, C = n_embd, V the vocabulary, b = 4 bytes in float32 and 2 under autocast:

    parameters, gradients, both moments of AdamW   16 bytes a parameter
    kept by a block for its backward pass          N C (2 * 4 + 6 b): both residual inputs; norms 2, q k v 3, heads 1
                                                   and INSIDE N b mlp_width
    kept by a block with recompute=blocks          N C 4: its residual input; one block at a time holds what is above
    attention written out (model.attention)        N n_head block_size b: its weights, on CPUs in bfloat16
    the head                                       N C (4 + b), and N V b for the logits, 12 N V where the loss is not compiled
    copies of the weights in autocast's type       2 bytes a parameter
    parallelism=fsdp                               the first line over all processes, and what is gathered at a time

The peak is either at the loss, when all blocks are kept and gradients begin, or at the end of the backward pass, when all
gradients are there and one block is. `python -m bench.memory` compares the estimate with what the allocator counts: LOG.md.
Counted as nothing: biases, norms, coefficients, and what allocators waste.
"""

import os
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from config.schema import Config, GPTConfig
from model import WRITTEN_OUT
from runtime.hardware import why_not_compile

INSIDE = {"plain": 2, "gated": 4}  # numbers a channel: c_fc's output and the activation's; c_gate's and the product too


class Estimate(NamedTuple):
    """Bytes of one process: parameters with their gradients and moments, and what a micro-batch takes beside them."""

    state: int
    step: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.state + self.step


def check(config: Config, device: torch.device, processes_here: int, dtype: torch.dtype, processes: int = 1) -> None:
    """Raises ValueError where the estimate is above what the device has; it names the fields with which the config fits."""
    needed, there = estimate(config, device, dtype, processes), share_of(device, processes_here)
    if needed.total <= there:
        return
    raise ValueError(
        f"this config needs about {gib(needed.total)} a process ({gib(needed.state)} for parameters, gradients and AdamW, "
        f"{gib(needed.step)} for a micro-batch), {device} has {gib(there)} for it; "
        f"{advice(config, device, dtype, processes, there)}"
    )


def advice(config: Config, device: torch.device, dtype: torch.dtype, processes: int, there: int) -> str:
    """What to type so that the config fits into `there` bytes: the change that costs least comes first."""
    share = config.global_batch_size // processes
    smaller = [micro for micro in range(min(config.micro_batch_size, share), 0, -1) if share % micro == 0]
    can_shard = processes > 1 and config.optimizer == "adamw" and dtype != torch.float16
    engines = dict.fromkeys((config.parallelism, "fsdp")) if can_shard else [config.parallelism]
    for parallelism, recompute, micro in product(engines, dict.fromkeys((config.recompute, "blocks")), smaller):
        chosen: dict[str, Any] = {"parallelism": parallelism, "recompute": recompute, "micro_batch_size": micro}
        if estimate(replace(config, **chosen), device, dtype, processes).total <= there:
            return "type " + " ".join(f"--{name} {value}" for name, value in chosen.items() if value != getattr(config, name))
    return "lower n_layer or n_embd" + ("" if processes > 1 else ", or start more processes with --parallelism fsdp")


def estimate(config: Config, device: torch.device, dtype: torch.dtype, processes: int = 1) -> Estimate:
    """The peak of a training step; `config` knows its vocabulary."""
    gpt, micro = config.gpt(config.vocab_size), config.micro_batch_size
    compiled = config.compile and not why_not_compile(device)
    recomputes = config.recompute == "blocks"
    tokens, bytes_each = micro * gpt.block_size, dtype.itemsize
    table = 4 * gpt.vocab_size * gpt.n_embd  # the token table, or its gradient
    parts = processes if config.parallelism == "fsdp" else 1
    state = state_bytes(gpt) // parts
    gradients = state // 4

    one = block_bytes(gpt, micro, device, dtype)  # what a block keeps
    held = 4 * tokens * gpt.n_embd if recomputes else one  # what it keeps until its backward pass begins
    working = bytes_each * tokens * gpt.mlp_width  # the gradient of the MLP's inside
    head = tokens * gpt.n_embd * (4 + bytes_each)
    head += tokens * gpt.vocab_size * bytes_each + table if compiled else 3 * 4 * tokens * gpt.vocab_size
    of_block = (gpt.matrix_parameters - (gpt.vocab_size + gpt.block_size) * gpt.n_embd) // gpt.n_layer
    copied = 2 * of_block if bytes_each < 4 else 0  # a block's weights in autocast's type
    copies = copied * (1 if compiled and recomputes else gpt.n_layer) + (table // 2 if copied else 0)

    whole = gathered_bytes(gpt, bytes_each, config.reshard_after_forward) if config.parallelism == "fsdp" else 0

    accumulated = gradients if config.global_batch_size > processes * micro else 0
    at_loss = accumulated + gpt.n_layer * held + head + copies
    first_block = max(accumulated, table) + gpt.n_layer * held + recomputes * one + working + copied
    last_block = gradients + recomputes * held + one + working + copied
    return Estimate(state, max(at_loss, first_block * recomputes, last_block) - gradients + whole)


def state_bytes(gpt: GPTConfig) -> int:
    """Parameters, gradients and AdamW's moments, all float32."""
    return 16 * gpt.matrix_parameters


def gathered_bytes(gpt: GPTConfig, bytes_each: int, reshards: bool) -> int:
    """What FSDP gathers: both tables with their gradients in float32; two blocks, one ahead, and one block's gradients."""
    tables = (gpt.vocab_size + gpt.block_size) * gpt.n_embd
    of_blocks = gpt.matrix_parameters - tables
    return 2 * 4 * tables + bytes_each * of_blocks // gpt.n_layer * (3 if reshards else gpt.n_layer + 1)


def block_bytes(gpt: GPTConfig, micro_batch_size: int, device: torch.device, dtype: torch.dtype) -> int:
    """What one block keeps for its backward pass."""
    tokens = micro_batch_size * gpt.block_size
    kept = tokens * (gpt.n_embd * (2 * 4 + 6 * dtype.itemsize) + INSIDE[gpt.mlp] * gpt.mlp_width * dtype.itemsize)
    written_out = device.type == "cpu" and dtype == torch.bfloat16 and gpt.block_size <= WRITTEN_OUT
    return kept + tokens * gpt.n_head * gpt.block_size * dtype.itemsize * written_out


def cache_bytes(gpt: GPTConfig, num_samples: int, dtype: torch.dtype) -> int:
    """Keys and values of generation, and the logits of one token."""
    return num_samples * (2 * gpt.n_layer * gpt.block_size * gpt.n_embd * dtype.itemsize + 4 * gpt.vocab_size)


def share_of(device: torch.device, processes_here: int) -> int:
    """What one of the processes on this machine may use: a GPU of its own, or its share of the machine's memory."""
    return total_bytes(device) // (processes_here if device.type == "cpu" else 1)


def total_bytes(device: torch.device) -> int:
    """All memory of a GPU, or of this machine as far as its control group lets us have it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return 1 << 62
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(physical, int(text)) if text.isdecimal() else physical


def gib(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 2**30:,.1f} GiB"
