"""config/gpt2.py with a learnable activation: Taylor polynomial gated unit."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, activation="tpgu:degree=5")
