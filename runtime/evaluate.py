"""Validation that separates activations which differ by a per cent: every target once, the same ones each time, exact sums.

Windows do not overlap, the tail counts, each rank takes its share, and nats, targets and bytes are summed in float64 over
all ranks; so the number depends neither on the number of processes nor, beyond rounding, on the batch size.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from data.batches import EvaluationWindows
from runtime.distributed import Processes
from runtime.hardware import autocast


@dataclass(frozen=True)
class Evaluation:
    """Sums over a validation set. `num_bytes` is None where the tokenizer's byte lengths are not known."""

    nats: float
    num_targets: int
    num_bytes: int | None

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats a token."""
        return self.nats / self.num_targets

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits a byte of text, comparable across tokenizers; end-of-text targets add bits and no bytes."""
        return self.nats / math.log(2) / self.num_bytes if self.num_bytes else None

    def row(self) -> dict[str, float | None]:
        """The fields of an evaluation row in metrics.jsonl."""
        return {"val_loss": self.loss, "val_perplexity": self.perplexity, "val_bits_per_byte": self.bits_per_byte}


Model = Callable[..., torch.Tensor]  # (inputs, targets, reduction="none") -> (B, T): a GPT, compiled or not


def evaluate(
    model: Model,
    windows: EvaluationWindows,
    byte_lengths: np.ndarray | None,
    processes: Processes,
    batch_size: int,
    dtype: torch.dtype,
    before_batch: Callable[[], object] = lambda: None,
    together: bool = False,
) -> Evaluation:
    """Loss over all `windows`; this process computes its share of them, `batch_size` windows a forward pass.

    `before_batch` is called before each pass, equally often on every rank; what it raises ends the evaluation.
    `together`: no rank can compute without the others (a sharded model), so each makes as many passes.
    """
    nats, num_targets, num_bytes = 0.0, 0, 0
    share = windows.share(processes.rank, processes.world_size)
    batches = target_nats(model, windows, share, batch_size, processes.device, dtype)
    largest_share = -(-len(windows) // processes.world_size)
    for _ in range(0, largest_share, batch_size):
        before_batch()
        if (batch := next(batches, None)) is None:  # another rank has one window more
            if together:
                list(target_nats(model, windows, np.zeros(1, dtype=np.int64), batch_size, processes.device, dtype))
            continue
        targets, losses = batch
        valid = targets >= 0
        nats += float(losses.astype(np.float64).sum())
        num_targets += int(valid.sum())
        if byte_lengths is not None:
            num_bytes += int(byte_lengths[targets[valid]].sum())
    nats, total_targets, total_bytes = processes.sum([nats, num_targets, num_bytes])
    assert total_targets == windows.num_targets, f"evaluated {total_targets} of {windows.num_targets} targets"
    return Evaluation(nats, int(total_targets), int(total_bytes) if byte_lengths is not None else None)


@torch.no_grad()
def target_nats(
    model: Model, windows: EvaluationWindows, indices: np.ndarray, batch_size: int, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(targets, nats), each (b, T), of the windows `indices`, batch by batch; where a target is -1 there is no token.

    Every forward pass has `batch_size` rows, the last one filled up with empty rows: one shape, one compiled graph.
    """
    for first in range(0, len(indices), batch_size):
        inputs, targets = windows.read(indices[first : first + batch_size])
        missing = batch_size - len(inputs)
        padded = [np.pad(a, ((0, missing), (0, 0)), constant_values=fill) for a, fill in ((inputs, 0), (targets, -1))]
        x, y = (torch.from_numpy(a).to(device) for a in padded)
        with autocast(device, dtype):
            losses = model(x, y, reduction="none")
        yield targets, losses[: len(targets)].float().cpu().numpy()
