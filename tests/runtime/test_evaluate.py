"""The validation loss is one number, whoever computes it."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config.schema import GPTConfig
from data import shards, tokenizer
from data.batches import EvaluationWindows
from model import GPT
from runtime.distributed import Processes
from runtime.evaluate import Evaluation, evaluate, target_nats

CPU = torch.device("cpu")
ALONE = Processes(0, 1, 0, CPU)


@pytest.fixture
def model() -> GPT:
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=257), 0).eval()


@pytest.fixture
def windows(data_dir: Path) -> EvaluationWindows:
    return EvaluationWindows(shards.open_split(data_dir, "val"), 32)


def slowly(model: GPT, windows: EvaluationWindows) -> tuple[float, int]:
    """Window after window in float64, the tail included: what `evaluate` must give."""
    tokens = torch.from_numpy(windows.tokens.read(0, len(windows.tokens)).astype(np.int64))
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, 32):
        chunk = tokens[start : start + 33]
        logits = model(chunk[None, :-1])[0].double().log_softmax(-1)
        total -= float(logits.gather(1, chunk[1:, None]).sum())
        count += len(chunk) - 1
    return total, count


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_every_target_once_whatever_the_batch(model: GPT, windows: EvaluationWindows, batch_size: int) -> None:
    result = evaluate(model, windows, tokenizer.load("bytes").byte_lengths(), ALONE, batch_size, torch.float32)
    nats, count = slowly(model, windows)
    assert result.num_targets == count == len(windows.tokens) - 1
    assert result.num_bytes == count  # no end-of-text in these shards
    assert result.loss == pytest.approx(nats / count, rel=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 50])
def test_ranks_share_the_work_and_the_sum_is_the_same(model: GPT, windows: EvaluationWindows, world_size: int) -> None:
    counts, sums = [], []
    for rank in range(world_size):
        pieces = list(target_nats(model, windows, windows.share(rank, world_size), 4, CPU, torch.float32))
        counts.append(sum(int((targets >= 0).sum()) for targets, _ in pieces))
        sums.append(sum(float(losses.astype(np.float64).sum()) for _, losses in pieces))
    assert sum(counts) == windows.num_targets
    assert max(counts) - min(counts) <= 2 * 32  # a window, and the short tail
    assert sum(sums) == pytest.approx(evaluate(model, windows, None, ALONE, 4, torch.float32).nats, rel=1e-6)


def test_each_rank_adds_only_its_own_share(model: GPT, windows: EvaluationWindows) -> None:
    """With `sum` replaced by one that notes what this rank brings, a rank of two brings half of the targets."""
    brought: list[list[float]] = []
    total = float(windows.num_targets)
    half = SimpleNamespace(rank=0, world_size=2, device=CPU, sum=lambda values: brought.append(values) or [1.0, total, 0.0])
    evaluate(model, windows, None, half, 4, torch.float32)  # type: ignore[arg-type]
    assert abs(brought[0][1] - total / 2) <= 32


def test_units() -> None:
    result = Evaluation(nats=200.0, num_targets=100, num_bytes=400)
    assert result.loss == 2.0
    assert result.perplexity == pytest.approx(math.e**2)
    assert result.bits_per_byte == pytest.approx(0.5 / math.log(2))
    assert Evaluation(1e6, 1, None).perplexity == math.inf
    assert Evaluation(1.0, 1, None).bits_per_byte is None


def test_eval_tokens_takes_that_many_in_windows_of_the_whole_set(
    model: GPT, data_dir: Path, windows: EvaluationWindows
) -> None:
    some = EvaluationWindows(shards.open_split(data_dir, "val"), 32, 100)
    assert some.starts.tolist() == [4 * 32, 14 * 32, 23 * 32, 33 * 32]  # of 38 whole windows
    result = evaluate(model, some, None, ALONE, 4, torch.float32)
    pieces = list(target_nats(model, windows, some.starts // 32, 1, CPU, torch.float32))
    flat = np.concatenate([losses.ravel() for _, losses in pieces])
    assert result.num_targets == 100
    assert result.nats == pytest.approx(float(flat[:100].astype(np.float64).sum()), rel=1e-6)
