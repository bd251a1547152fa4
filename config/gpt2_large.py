"""GPT-2 large with the 124M recipe."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, n_layer=36, n_head=20, n_embd=1280, micro_batch_size=4)
