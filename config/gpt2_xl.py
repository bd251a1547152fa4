"""GPT-2 XL, 1.6B: the 124M recipe at GPT-3's rate and batch for 1.3B, a million tokens (Brown et al. 2020, table 2.1)."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(
    base,
    n_layer=48,
    n_head=25,
    n_embd=1600,
    # 960 sequences * 1024 tokens = 983,040 tokens a step; on 8 processes that is 10 micro-batches of 12 each.
    global_batch_size=960,
    micro_batch_size=12,
    max_steps=300_000,
    recompute="blocks",  # without it a process needs 60 GiB
    learning_rate=2e-4,
    min_lr=2e-5,
)
