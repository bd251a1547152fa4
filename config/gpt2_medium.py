"""GPT-2 medium, 355M: the 124M recipe at GPT-3's rate for 350M (Brown et al. 2020, table 2.1)."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, n_layer=24, n_head=16, n_embd=1024, micro_batch_size=12, learning_rate=3e-4, min_lr=3e-5)
