"""config/gpt2.py with a learnable activation: tropical polynomial."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, activation="tropical:degree=6")
