"""What a run is about to do, said before anything that takes long: reading all tokens, drawing weights, compiling."""

from collections import Counter
from pathlib import Path

import torch

import activations
from activations import registry
from config.schema import Config, GPTConfig
from runtime import checkpoint, distributed, memory
from runtime.dataset import Dataset
from runtime.distributed import Processes
from runtime.hardware import describe, why_not_compile


def plan(config: Config, dataset: Dataset, processes: Processes, dtype: torch.dtype, origin: Path | None) -> list[str]:
    """The lines; `config` is resolved, and the run goes on from the checkpoint `origin` if there is one.

    Memory is the estimate of `runtime.memory`, for one process.
    """
    gpt = config.gpt(config.vocab_size)
    all_parameters, of_activations = count_parameters(gpt)
    flops = gpt.flops_per_token(all_parameters)
    tokens = config.max_steps * config.tokens_per_step
    needed = memory.estimate(config, processes.device, dtype, processes.world_size).total
    there = memory.share_of(processes.device, distributed.processes_here())
    count = processes.world_size
    warming = ", all of them in the warm-up" if config.warmup_steps >= config.max_steps > 0 else ""
    # Nothing else is said until the first evaluation: a minute where cores are few, and people take it for a hang.
    compiling = "; it is compiled first" if config.compile and not why_not_compile(processes.device) else ""
    lines = [
        f"model   {gpt.activation}{f' as the gate of {gpt.mlp_width} channels' if gpt.mlp == 'gated' else ''} in {gpt.n_layer} "
        f"layers of width {gpt.n_embd}: {all_parameters:,} parameters, "
        f"{of_activations:,} of them in the activations",
        f"data    {config.data_dir}: {len(dataset.train):,} tokens to train on, {dataset.validation.num_targets:,} "
        f"to evaluate on, tokenizer {dataset.tokenizer}",
        f"work    {config.max_steps:,} steps of {config.tokens_per_step:,} tokens, {tokens:,} in all{warming}; "
        f"{flops:.3g} FLOP a token, {flops * tokens:.3g} in all",
        f"device  {count} process{'es' if count > 1 else ''} on {describe(processes.device)['device']} ({processes.device}), "
        f"{str(dtype).removeprefix('torch.')}, about {memory.gib(needed)} of {memory.gib(there)}"
        f"{' each' if count > 1 else ''}",
        f"run     {config.out_dir}{f', from step {checkpoint.step_of(origin):,}' if origin else ''}{compiling}",
    ]
    return [line for line in lines if not (config.eval_only and line.startswith(("work", "run")))]


def count_parameters(config: GPTConfig) -> tuple[int, int]:
    """(`GPT(config).num_parameters()`, those of its activations), without making the model."""
    width, norms = config.n_embd, 2 * config.n_layer + 1
    of_mlp = config.mlp_width * (2 if config.mlp == "gated" else 1)
    biases = config.n_layer * (5 * width + of_mlp) if config.bias else 0  # c_attn 3, the two c_proj 1 each
    of_layers = Counter(registry.of_layer(config.activation, layer, config.n_layer) for layer in range(config.n_layer))
    of_activations = 0
    for spec, count in of_layers.items():
        once = sum(p.numel() for p in activations.build(spec, config.mlp_width).parameters())
        of_activations += once if registry.options(spec).get("per") == "model" else count * once
    norm_parameters = norms * width * (2 if config.bias else 1)
    return config.matrix_parameters + norm_parameters + biases + of_activations, of_activations


def duration(seconds: float) -> str:
    """Seconds in words, in the two largest units: 2 h 13 min."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(hours / 24)} days {int(hours % 24)} h"
