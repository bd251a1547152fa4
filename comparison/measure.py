"""What a comparison needs of a finished run beside its metrics: losses by validation document, and the learned shapes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from activations import Activation
from comparison.record import MEASURED, Record, read
from config.schema import Config
from data import shards, tokenizer
from data.batches import EvaluationWindows
from model import GPT
from runtime import checkpoint
from runtime.evaluate import target_nats
from runtime.files import write_json
from runtime.hardware import pick_device, pick_dtype

log = logging.getLogger("compare")

_POINTS = 61  # of a shape
_REACH = 3.5  # a shape is drawn up to so many standard deviations of the inputs

Table = dict[str, list[float]]


def measure(folder: Path) -> None:
    """Write measured.json into the folder of a finished run: `documents` and `shapes` of a `Record`. Raises ValueError."""
    model, config = checkpoint.load_model(folder, "last")
    documents = by_document(model, config, Path(config.data_dir))
    with _input_stds(model) as stds:
        by_document(model, config, Path(config.data_dir), max_targets=config.block_size * config.micro_batch_size)
    models = {"0": GPT(config.gpt(config.vocab_size), config.seed)}
    models |= {str(int(path.name[5:])): checkpoint.load_model(path)[0] for path in checkpoint.checkpoints(folder)}
    shapes: dict[str, Table] = {}
    for layer, std in stds.items():
        x = np.linspace(-_REACH * std, _REACH * std, _POINTS)
        curves = {step: _shape(_activations(one)[layer], x) for step, one in models.items()}
        shapes[layer] = {"x": x.tolist()} | curves if any(True for _ in _activations(model)[layer].parameters()) else {}
    write_json(
        folder / MEASURED, {"documents": documents, "shapes": {layer: table for layer, table in shapes.items() if table}}
    )


def read_measured(folder: Path) -> Record:
    """The record of a finished run, measured first where train.py alone made it and its weights and data are still there."""
    has_all = bool(checkpoint.checkpoints(folder)) and Path(checkpoint.read_config(folder).data_dir).is_dir()
    if not (folder / MEASURED).is_file():
        if has_all:
            measure(folder)
        else:
            log.info("%s: weights or data are gone, so it has no losses by document and no shapes", folder)
    return read(folder)


def by_document(model: GPT, config: Config, data_dir: Path, max_targets: int = 0) -> Table:
    """Columns nats, targets, bytes: sums over each validation document of `data_dir`, every target of the set once.

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
    starts = np.array(meta.val_document_offsets if meta else range(1, windows.num_targets + 1, config.block_size))
    device = pick_device(config.device, 0)
    lengths = tokenizer.load(config.tokenizer).byte_lengths()
    sums = np.zeros((3, len(starts)))
    position = 1  # of the next target in the stream: its first token is never one
    model.to(device)
    every = np.arange(len(windows))
    for targets, nats in target_nats(model, windows, every, config.micro_batch_size, device, pick_dtype(config.dtype, device)):
        valid = targets >= 0
        positions = position + np.arange(int(valid.sum()))
        documents = np.searchsorted(starts, positions, side="right") - 1
        for row, values in enumerate((nats[valid], np.ones(len(positions)), lengths[targets[valid]])):
            sums[row] += np.bincount(documents, values.astype(np.float64), len(starts))
        position += len(positions)
    assert position == windows.num_targets + 1, f"evaluated {position - 1} of {windows.num_targets} targets"
    sums = sums[:, sums[1] > 0]  # with eval_tokens the later documents have no target
    return {name: row.tolist() for name, row in zip(("nats", "targets", "bytes"), sums, strict=True)}


def _activations(model: GPT) -> dict[str, Activation]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Activation)}


@contextmanager
def _input_stds(model: GPT) -> Iterator[dict[str, float]]:
    """Layer -> standard deviation of what its activation was fed last while the context was entered."""
    stds: dict[str, float] = {}

    def note(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            stds[name] = float(inputs[0].float().std())

        return _activations(model)[name].register_forward_pre_hook(hook)

    handles = [note(name) for name in _activations(model)]
    try:
        yield stds
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _shape(activation: Activation, x: np.ndarray) -> list[float]:
    """F(x), the mean over channels where each has its own."""
    inputs = torch.from_numpy(x)[:, None].expand(-1, activation.channels)
    mean: list[float] = activation.cpu().reference(inputs).mean(1).tolist()
    return mean
