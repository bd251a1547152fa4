"""config/tiny.py with a learnable activation: Taylor polynomial gated unit."""

from dataclasses import replace

from config.tiny import config as base

config = replace(base, activation="tpgu:degree=5")
