"""config/gpt2.py with a learnable activation: Hermite polynomial."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, activation="hermite:degree=3")
