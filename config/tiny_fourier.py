"""config/tiny.py with a learnable activation: Fourier series."""

from dataclasses import replace

from config.tiny import config as base

config = replace(base, activation="fourier:degree=5")
