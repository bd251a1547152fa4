"""What a run is about to do, said before anything that takes long: reading all tokens, drawing weights, compiling."""

from pathlib import Path

import torch

from config.schema import Config
from model import count_flops_per_token, count_parameters
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
    flops = count_flops_per_token(gpt, all_parameters)
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
