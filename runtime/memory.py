"""How much memory a training step takes, before it is taken: a config that cannot fit is bad input, not a killed process.

    parameters, gradients, both moments of AdamW       16 bytes a parameter
    activations kept for the backward pass             layers * tokens * ((ATTENTION + MLP) * n_embd + MLP's inside) numbers
    logits, log-probabilities and their gradient       LOGITS * tokens * vocabulary numbers of 4 bytes

for tokens = micro_batch_size * block_size, and numbers of 4 bytes in float32, of 2 under autocast. Attention is a fused kernel,
which keeps no (T, T) matrix. Counted as nothing: biases, norms, coefficients, the allocator's waste; what torch.compile saves.
"""

import os
from pathlib import Path

import torch

from config.schema import Config, GPTConfig

ATTENTION = 7  # n_embd numbers a token: input, its norm, q, k, v, the heads' output, the projection's
MLP = 3  # the same of the MLP: input, its norm, c_proj's output
INSIDE = {"plain": 2, "gated": 4}  # mlp_width numbers a token: c_fc's output and the activation's; c_gate's and the product too
LOGITS = 3


def check(config: Config, device: torch.device, processes_here: int, dtype: torch.dtype) -> None:
    """Raises ValueError where the estimate is above what the device has; it names the field to lower."""
    gpt = config.gpt(config.vocab_size)
    state, step = state_bytes(gpt), activation_bytes(gpt, config.micro_batch_size, dtype)
    there = share_of(device, processes_here)
    if state + step <= there:
        return
    lower = "n_layer or n_embd" if state > there or config.micro_batch_size == 1 else "micro_batch_size"
    raise ValueError(
        f"this config needs about {gib(state + step)} a process ({gib(state)} for parameters, gradients and AdamW, "
        f"{gib(step)} for a micro-batch), {device} has {gib(there)} for it; lower {lower}"
    )


def state_bytes(gpt: GPTConfig) -> int:
    """Parameters, gradients and AdamW's moments, all float32."""
    return 16 * gpt.matrix_parameters


def activation_bytes(gpt: GPTConfig, micro_batch_size: int, dtype: torch.dtype) -> int:
    """What one forward pass keeps for its backward."""
    tokens = micro_batch_size * gpt.block_size
    kept = gpt.n_layer * ((ATTENTION + MLP) * gpt.n_embd + INSIDE[gpt.mlp] * gpt.mlp_width) * dtype.itemsize
    return tokens * (kept + LOGITS * gpt.vocab_size * 4)


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
