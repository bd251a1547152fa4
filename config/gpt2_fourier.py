"""config/gpt2.py with a learnable activation: Fourier series."""

from dataclasses import replace

from config.gpt2 import config as base

config = replace(base, activation="fourier:degree=5")
