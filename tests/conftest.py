"""Fixtures that several test modules share: a small prepared data set and the config of a run of seconds."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from config.schema import Config
from config.tiny import config as tiny
from data.shards import header


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small lose time on threads, and several processes of a test share few cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Foreign shards (no meta.json) of the bytes tokenizer: two of training, one of validation, with something to learn."""
    folder = tmp_path_factory.mktemp("shards")
    generator = np.random.default_rng(0)
    for name, count in (("train_000000", 6000), ("train_000001", 3001), ("val_000000", 1234)):
        words = generator.integers(97, 123, size=(count // 4 + 1, 1)) + np.array([0, 1, 2, -60])  # "abc%", "xyz>", ...
        tokens = words.reshape(-1)[:count].astype("<u2")
        (folder / f"{name}.bin").write_bytes(header(count) + tokens.tobytes())
    return folder


@pytest.fixture
def small(data_dir: Path, tmp_path: Path) -> Config:
    """A run of seconds: two layers of 32, float32, not compiled, twelve steps of twelve sequences."""
    return dataclasses.replace(
        tiny,
        activation="hermite:degree=3",
        n_layer=2,
        n_head=2,
        n_embd=32,
        block_size=32,
        data_dir=str(data_dir),
        tokenizer="bytes",
        global_batch_size=12,
        micro_batch_size=4,
        max_steps=12,
        log_interval=1,
        eval_interval=6,
        checkpoint_interval=100,
        warmup_steps=2,
        device="cpu",
        dtype="float32",
        compile=False,
        out_dir=str(tmp_path / "run"),
    )
