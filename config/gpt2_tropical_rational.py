"""config/gpt2.py with a learnable activation: tropical rational function."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, activation="tropical_rational:degree=6")
