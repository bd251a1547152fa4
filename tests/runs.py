"""Small runs in the test's own process, and functions in several processes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

import train
from config.schema import Config
from faults.process import forkserver
from faults.runs import ROOT, arguments


def train_here(config: Config, **changes: Any) -> Config:
    """Train in this process and return the config that ran."""
    config = dataclasses.replace(config, **changes)
    assert train.main([str(ROOT / "config" / "tiny.py"), *arguments(config)]) == 0
    return config


def in_processes(work: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """work(rank, *arguments) in `count` processes, each started in a fraction of a second; raises what one of them raises."""
    forkserver()  # says what the server imports before start_processes starts it
    torch.multiprocessing.start_processes(work, arguments, nprocs=count, start_method="forkserver")
