"""config/tiny.py with a learnable activation: tropical polynomial."""

from dataclasses import replace

from config.tiny import config as base

config = replace(base, activation="tropical:degree=6")
