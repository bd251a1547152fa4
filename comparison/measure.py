"""What a comparison needs of a finished run beside its metrics: losses by validation document, and the learned shapes."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activations import Activation
from comparison.record import MEASURED, Record, read, unfinished
from config.foreign import read_object
from config.schema import Config
from data import shards
from data.batches import EvaluationWindows
from model import GPT, MLP
from runtime import checkpoint
from runtime import log as metrics
from runtime.dataset import byte_lengths
from runtime.evaluate import target_nats
from runtime.files import write_json
from runtime.hardware import pick_device, pick_dtype

log = logging.getLogger("compare")

_STEPS_BETWEEN = 3  # shapes between the first step and the last
_POINTS = 61  # of a shape
_REACH = 3.0  # a shape is drawn up to so many standard deviations of the inputs

Table = dict[str, list[float]]


def measure(folder: Path) -> None:
    """Write measured.json into the folder of a finished run: `documents` and `shapes` of a `Record`, at which step, of which
    weights. Raises ValueError where the checkpoint of the last step is not there."""
    last = last_checkpoint(folder)
    model, config = checkpoint.load_model(last)
    found = {
        "step": config.max_steps,
        "weights_sha256": shards.file_sha256(last / "model.safetensors"),
        "documents": by_document(model, config, Path(config.data_dir)),
        "shapes": shapes(model, config, metrics.read(folder / "metrics.jsonl")),
    }
    write_json(folder / MEASURED, found)


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint of a run's last step. Raises ValueError where it is not there."""
    return checkpoint.find(folder, str(checkpoint.read_config(folder).max_steps))


def is_measured(folder: Path) -> bool:
    """Whether measured.json is of this run's last step and of the weights that are there; weights that are gone are believed.

    A run that is trained further, or again, has a measured.json of its former weights.
    """
    path = folder / MEASURED
    if not path.is_file():
        return False
    if not checkpoint.checkpoints(folder):
        return True
    measured, weights = read_object(path), last_checkpoint(folder) / "model.safetensors"
    at_end = measured.get("step") == checkpoint.read_config(folder).max_steps
    return at_end and measured.get("weights_sha256") == shards.file_sha256(weights)


def read_measured(folder: Path) -> Record:
    """The record of a finished run, measured first where train.py alone made it and its weights and data are still there."""
    if why := unfinished(folder):
        raise ValueError(f"{folder}: {why}")
    has_all = bool(checkpoint.checkpoints(folder)) and Path(checkpoint.read_config(folder).data_dir).is_dir()
    if not is_measured(folder):
        if has_all:
            measure(folder)
        else:
            log.info("%s: weights or data are gone, so it has no losses by document and no shapes", folder)
    return read(folder)


def by_document(model: GPT, config: Config, data_dir: Path, max_targets: int = 0) -> Table:
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
    model.to(device)
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
    found: Table = {}
    for name, values in zip(("nats", "targets", "bytes"), sums, strict=True):
        found |= {name: values.sum(axis=0).tolist(), f"selecting_{name}": values[0].tolist()}
    return found


def shapes(model: GPT, config: Config, rows: list[dict[str, Any]]) -> dict[str, Table]:
    """Layer -> columns x and F(x) at step 0, at some telemetry `rows` and at the last step, for every learnable activation.

    x reaches as far as the trained model's inputs. Where channels differ F is their mean, and telemetry, which has means of
    coefficients, tells nothing of it.
    """
    first = MLP(config.gpt(config.vocab_size)).act.cpu()
    learned = {name: module.cpu() for name, module in model.named_modules() if isinstance(module, Activation)}
    learned = {name: module for name, module in learned.items() if any(True for _ in module.parameters())}
    if not learned:
        return {}
    stds = {name: float(sample.std()) for name, sample in sample_inputs(model, config).items()}
    tables: dict[str, Table] = {}
    for name, module in learned.items():
        x = torch.linspace(-_REACH * stds[name], _REACH * stds[name], _POINTS, dtype=torch.float64)
        tables[name] = {"x": x.tolist(), "0": _curve(first, x)}
        seen = [row for row in rows if 0 < row["step"] < config.max_steps and f"{name}.second_moment" in row]
        if all(value.dim() == 1 for value in module.values().values()):
            then = copy.deepcopy(first)
            for row in seen[:: max(1, len(seen) // _STEPS_BETWEEN)][:_STEPS_BETWEEN]:
                for key, value in then.values().items():
                    getattr(then, key).data.copy_(torch.tensor([row[f"{name}.{key}.{i}"] for i in range(len(value))]))
                tables[name][str(row["step"])] = _curve(then, x)
        tables[name][str(config.max_steps)] = _curve(module, x)
    return tables


@torch.no_grad()
def sample_inputs(model: GPT, config: Config) -> dict[str, Tensor]:
    """Layer -> what its activation is fed on a micro-batch of validation windows, spread over the set, on the CPU."""
    few = config.micro_batch_size * config.block_size
    windows = EvaluationWindows(shards.open_split(config.data_dir, "val"), config.block_size, few)
    tokens, _ = windows.read(np.arange(len(windows)))
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: found.update({name: inputs[0].float()})

    watched = [(name, module) for name, module in model.cpu().named_modules() if isinstance(module, Activation)]
    handles = [module.register_forward_pre_hook(note(name)) for name, module in watched]
    model(torch.from_numpy(tokens))
    for handle in handles:
        handle.remove()
    return found


def _curve(activation: Activation, x: Tensor) -> list[float]:
    mean: list[float] = activation.reference(x[:, None].expand(-1, activation.channels)).mean(1).detach().tolist()
    return mean
