"""Small runs in the test's own process."""

import dataclasses
from typing import Any

import train
from config.schema import Config
from faults.runs import ROOT, arguments


def train_here(config: Config, **changes: Any) -> Config:
    """Train in this process and return the config that ran."""
    config = dataclasses.replace(config, **changes)
    assert train.main([str(ROOT / "config" / "tiny.py"), *arguments(config)]) == 0
    return config
