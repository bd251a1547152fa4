"""The published GPT-2 124M, measured on OpenWebText's validation set and not trained: nanoGPT reports 3.12."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, bias=True, init_from="openai-community/gpt2", eval_only=True)
