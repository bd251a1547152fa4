"""GPT-2 medium with the 124M recipe."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, n_layer=24, n_head=16, n_embd=1024, micro_batch_size=4)
