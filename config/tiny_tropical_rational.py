"""config/tiny.py with a learnable activation: tropical rational function."""

from dataclasses import replace

from config.tiny import config as base

config = replace(base, activation="tropical_rational:degree=6")
