"""config/tiny.py with a learnable activation: Hermite polynomial."""

from dataclasses import replace

from config.tiny import config as base

config = replace(base, activation="hermite:degree=3")
