"""Fixtures that several test modules share: a small prepared data set and the config of a run of seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from config.schema import Config
from data.shards import header
from tests.runs import small_config


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
    """The config of a run of seconds, in a folder of the test's own."""
    return small_config(data_dir, tmp_path / "run")
