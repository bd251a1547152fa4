"""GPT-2 xl with the 124M recipe."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, n_layer=48, n_head=25, n_embd=1600, micro_batch_size=4)
