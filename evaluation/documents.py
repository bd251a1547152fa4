"""The loss of a model on a prepared validation set, document by document: what intervals over text are computed from."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config.schema import Config
from data import shards
from data.batches import EvaluationWindows
from model import GPT
from runtime.dataset import byte_lengths
from runtime.evaluate import target_nats
from runtime.hardware import move, pick_device, pick_dtype

Columns = dict[str, list[float]]


def by_document(model: GPT, config: Config, data_dir: Path, max_targets: int = 0) -> Columns:
    """Columns nats, targets, bytes: sums over each validation document of `data_dir`, every target of the set once.

    Columns selecting_nats and so on: those of every other window alone, by which a learning rate is chosen.

    The document of a target is the one that it lies in; shards without meta.json have none known, there each window counts
    as one. `max_targets` 0: as many as the run evaluates on its own data. Raises ValueError where the tokenizers differ.
    """
    meta = shards.read_meta(data_dir)
    if meta and meta.tokenizer != config.tokenizer:
        raise ValueError(
            f"{data_dir} was written with tokenizer {meta.tokenizer!r}, the model reads {config.tokenizer!r}; prepare it again"
        )
    if not data_dir.is_dir():
        raise ValueError(f"data_dir {str(data_dir)!r} does not exist; python -m data.prepare makes one")
    tokens = shards.open_split(data_dir, "val")
    tokens.check_vocabulary(config.vocab_size)
    own = data_dir.resolve() == Path(config.data_dir).resolve()
    windows = EvaluationWindows(tokens, config.block_size, max_targets or (config.eval_tokens if own else 0))
    starts = np.array(meta.val_document_offsets) if meta and meta.val_document_offsets else windows.starts + 1
    device = pick_device(config.device, 0)
    lengths = byte_lengths(config.tokenizer, data_dir, config.data_dir, config.out_dir)
    if lengths is None:
        lengths = np.zeros(config.vocab_size, np.int64)
    sums = np.zeros((3, 2, len(starts)))  # (nats, targets or bytes; windows that select or report; documents)
    move(model, device)
    every, size = np.arange(len(windows)), config.micro_batch_size
    batches = target_nats(model, windows, every, size, device, pick_dtype(config.dtype, device))
    for indices, (targets, nats) in zip(np.split(every, every[size::size]), batches, strict=True):
        valid = targets >= 0
        positions = (windows.starts[indices, None] + 1 + np.arange(windows.block_size))[valid]
        halves = np.broadcast_to(indices[:, None] % 2, valid.shape)[valid]
        places = halves * len(starts) + np.searchsorted(starts, positions, side="right") - 1
        for row, values in enumerate((nats[valid], np.ones(len(places)), lengths[targets[valid]])):
            sums[row] += np.bincount(places, values.astype(np.float64), 2 * len(starts)).reshape(2, -1)
    assert sums[1].sum() == windows.num_targets, f"evaluated {sums[1].sum()} of {windows.num_targets} targets"
    sums = sums[..., sums[1].sum(axis=0) > 0]  # with eval_tokens some documents have no target
    found: Columns = {}
    for name, values in zip(("nats", "targets", "bytes"), sums, strict=True):
        found |= {name: values.sum(axis=0).tolist(), f"selecting_{name}": values[0].tolist()}
    return found


def part_of(documents: dict[str, list[float]]) -> tuple[float, float | None]:
    """(loss, bits per byte) of these columns. Raises ValueError where there is nothing in them."""
    nats, targets, size = (math.fsum(documents[name]) for name in ("nats", "targets", "bytes"))
    if not targets:
        raise ValueError("too little validation text to hold some of it out; prepare a larger validation set")
    return nats / targets, nats / math.log(2) / size if size else None


@dataclass(frozen=True)
class Loss:
    """The loss of a model on a prepared validation set."""

    data_dir: str
    corpus_sha256: str
    """Of the prepared text; empty where the folder has no meta.json."""
    documents: Columns
    """As `by_document` gives them."""

    @property
    def targets(self) -> int:
        """How many tokens were predicted."""
        return int(math.fsum(self.documents["targets"]))

    @property
    def nats(self) -> float:
        """Mean cross-entropy, nats a token."""
        return part_of(self.documents)[0]

    @property
    def perplexity(self) -> float:
        """exp(nats); infinite where that overflows."""
        return math.exp(self.nats) if self.nats < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """None where the tokenizer's bytes are not known."""
        return part_of(self.documents)[1]

    def to_json(self) -> dict[str, Any]:
        """Its numbers, and the columns that they follow from."""
        return {
            "data_dir": self.data_dir,
            "corpus_sha256": self.corpus_sha256,
            "targets": self.targets,
            "loss": self.nats,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "documents": self.documents,
        }


def measure(model: GPT, config: Config, data_dir: Path) -> Loss:
    """The loss on the validation set of `data_dir`. Raises ValueError as `by_document` does."""
    documents = by_document(model, config, data_dir)
    meta = shards.read_meta(data_dir)
    return Loss(str(data_dir), meta.corpus_sha256 if meta else "", documents)
