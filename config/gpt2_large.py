"""GPT-2 large, 774M: the 124M recipe at GPT-3's rate for 760M (Brown et al. 2020, table 2.1)."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, n_layer=36, n_head=20, n_embd=1280, micro_batch_size=6, learning_rate=2.5e-4, min_lr=2.5e-5)
