"""What a finished run tells: its record, all that a comparison needs of it, so that its folder may go.

A record is read from a run's folder (`read`) or from a results.json (`from_json`), which may be anybody's: it is validated as
data. What the folder lacks, losses by validation document and the learned shapes, is measured with the last
weights (`measure`).
"""

import copy
import json
import logging
import statistics
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from activations import Activation
from config import arm
from config.foreign import read_object
from config.schema import Config
from data import shards
from data.batches import EVERYTHING, FROM_START, EvaluationWindows
from data.files import write_json
from evaluation import scores, store
from evaluation.documents import Columns, by_document, part_of
from evaluation.scores import Scores
from model import GPT, MLP
from runtime import checkpoint
from runtime import log as metrics

log = logging.getLogger("compare")

MEASURED = "measured.json"  # what `measure` adds to a run's folder
_CURVE_POINTS = 100
# Documents and val_loss are two evaluations of one model, compiled and not: 397 stored runs differ by at most 7e-7 nats
# in float32 and 4e-5 in bfloat16. Other weights, or other tokens, differ by more than this share of the loss.
_AGREEMENT = 1e-3


class DivergedError(ValueError):
    """A run that ended with a validation loss that is not finite."""


@dataclass(frozen=True)
class Record:
    """One run. `config` is the resolved one; hashes are hexadecimal; losses are nats a token; `None` is not known."""

    config: dict[str, Any]
    data_hash: str
    """Chained over every batch the run was fed."""
    init_hash: str
    """Of the initial weights that are not the activation's."""
    data: dict[str, Any]
    """What was trained and validated on: hashes of corpus and shards."""
    evaluations: dict[str, list[float]]
    """Columns step, elapsed_s, val_loss."""
    training: dict[str, list[float]]
    """Columns step, train_loss: means of equal stretches of the run."""
    bits_per_byte: float | None
    parameters: int
    activation_parameters: int
    tokens_per_second: float | None
    """Median of the training rows, as the next one."""
    ms_per_step: float | None
    peak_memory_bytes: int | None
    provenance: dict[str, Any]
    """Commit, dirty, hardware (with versions), command; `resumed`, where there is one: step, commit, dirty and hardware of each
    launch that went on with the run."""
    documents: dict[str, list[float]] = field(default_factory=dict)
    """Columns nats, targets, bytes of each validation document at the last step, and the same in every other window, named
    selecting_nats and so on (not in runs before 2026-11-27); empty where not measured."""
    gains: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Layer -> columns step, second_moment (E[F^2] / E[x^2]), slope (E[F'^2]), measured on training inputs."""
    shapes: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Layer -> column x, one column of values for each step, named by it, and density: of the layer's inputs at x, highest 1
    (not in runs before 2026-11-27)."""
    coefficients: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Layer -> column step, and one column for each coefficient, named by it: telemetry's means over channels."""
    weights_sha256: str = ""
    """Of the model.safetensors that `documents` and `shapes` were measured with; empty where not measured."""
    tasks: dict[str, Scores] = field(default_factory=dict)
    """Task -> scores of the last checkpoint, where evaluate.py or compare.py --tasks took them."""

    @property
    def activation(self) -> str:
        """The canonical name of its arm: the spec, or `gated(SPEC)`."""
        return arm.of(self.config)

    @property
    def seed(self) -> int:
        seed: int = self.config["seed"]
        return seed

    @property
    def launches(self) -> list[dict[str, Any]]:
        """The provenance of the first launch, and of each that went on with the run."""
        return [self.provenance, *self.provenance.get("resumed", [])]

    @property
    def tokens_per_step(self) -> int:
        tokens: int = self.config["global_batch_size"] * self.config["block_size"]
        return tokens

    @property
    def val_loss(self) -> float:
        """At the last step, on the whole validation set."""
        return self.evaluations["val_loss"][-1]

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations a trained token, by the formula of `GPT.flops_per_token`."""
        layers, width, context = (self.config[name] for name in ("n_layer", "n_embd", "block_size"))
        flops: int = 6 * (self.parameters - context * width) + 12 * layers * width * context
        return flops

    @property
    def documents_are_windows(self) -> bool:
        """Whether nothing is known of the documents: windows of the evaluation stand for them."""
        targets = self.documents.get("targets", [])
        return len(targets) > 1 and set(targets[:-1]) == {self.config["block_size"]} and targets[-1] <= targets[0]

    @property
    def selects_by_window(self) -> bool:
        """Whether every other window of all documents selects a learning rate; in older records every other document does."""
        return "selecting_targets" in self.documents

    def half(self, which: Literal["selects", "reports"]) -> dict[str, list[float]]:
        """The columns of `documents` on the half of the validation set that selects a learning rate, or on the rest."""
        columns = ("nats", "targets", "bytes")
        if not self.selects_by_window:
            part = slice({"selects": 0, "reports": 1}[which], None, 2)
            return {name: self.documents[name][part] for name in columns}
        selecting = {name: np.array(self.documents[f"selecting_{name}"]) for name in columns}
        rest = {name: np.array(self.documents[name]) - selecting[name] for name in columns}
        return {name: values.tolist() for name, values in (selecting if which == "selects" else rest).items()}

    def part(self, which: Literal["selects", "reports"]) -> tuple[float, float | None]:
        """(loss, bits per byte) on such a half."""
        return part_of(self.half(which))

    def tokens_curve(self) -> np.ndarray:
        """Training tokens seen at each evaluation."""
        return np.array(self.evaluations["step"]) * self.tokens_per_step


def unfinished(folder: Path) -> str:
    """Why a run's folder is not that of a finished run; empty where it is one.

    A run writes the row of its last evaluation before its last checkpoint. So older checkpoints beside that row are those of
    a run that stopped in between. A folder without any checkpoint may be a finished run whose weights were deleted.
    """
    last = _read_json(folder / "config.json").get("max_steps") if (folder / "config.json").is_file() else None
    rows = metrics.read(folder / "metrics.jsonl")
    if not any("val_loss" in row and row["step"] == last for row in rows[-3:]):
        step = f" (step {rows[-1]['step']} of {last})" if rows else ""
        return f"it is not finished{step}; go on with it by the command that started it"
    there = checkpoint.checkpoints(folder)
    if there and checkpoint.step_of(there[-1]) != last:
        return f"it stopped before its checkpoint of step {last} was written; go on with it by the command that started it"
    return ""


def is_finished(folder: Path) -> bool:
    """Whether a run has its last evaluation and its last checkpoint, or was measured at its last step and then discarded."""
    if unfinished(folder):
        return False
    measured = _read_json(folder / MEASURED) if (folder / MEASURED).is_file() else {}
    return bool(checkpoint.checkpoints(folder)) or measured.get("step") == _read_json(folder / "config.json")["max_steps"]


def read(folder: Path) -> Record:
    """The record of a finished run's folder. Raises ValueError that says what is missing."""
    for name in ("config.json", "run.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; give folders that train.py made")
    if why := unfinished(folder):
        raise ValueError(f"{folder}: {why}")
    config, run = _read_json(folder / "config.json"), _read_json(folder / "run.json")
    rows = metrics.read(folder / "metrics.jsonl")
    training, evaluations = ([row for row in rows if name in row] for name in ("train_loss", "val_loss"))
    if evaluations[-1]["val_loss"] is None:
        raise DivergedError(f"{folder} ended with a validation loss that is not finite")
    evaluations = [row for row in evaluations if row["val_loss"] is not None]
    measured = _read_json(folder / MEASURED) if (folder / MEASURED).is_file() else {}
    if measured.get("step", config["max_steps"]) != config["max_steps"]:
        measured = {}  # of the run before it was trained further
    return from_json(
        {
            "config": config,
            "data_hash": evaluations[-1].get("data_hash"),
            "init_hash": run.get("init_hash"),
            "data": _evaluated(run),
            "evaluations": {name: [row.get(name) for row in evaluations] for name in ("step", "elapsed_s", "val_loss")},
            "training": _thinned(training),
            "bits_per_byte": evaluations[-1].get("val_bits_per_byte"),
            "parameters": run.get("parameters"),
            "activation_parameters": run.get("activation_parameters"),
            "tokens_per_second": _median(row.get("tokens_per_second") for row in training),
            "ms_per_step": _median(row.get("ms_per_step") for row in training),
            "peak_memory_bytes": run.get("peak_memory_bytes"),
            "provenance": _provenance(run),
            "gains": _gains(rows),
            "coefficients": _coefficients(rows),
            **{name: measured[name] for name in ("documents", "shapes", "weights_sha256") if name in measured},
            "tasks": store.tasks(folder, config["max_steps"], measured.get("weights_sha256", "")),
        },
        str(folder),
    )


def from_json(values: Any, where: str) -> Record:
    """A record from untrusted data. Raises ValueError that begins with `where`."""
    names = {f.name for f in fields(Record)}
    if not isinstance(values, dict) or not set(values) <= names:
        raise ValueError(f"{where}: not the record of a run")
    missing = [name for name in ("data_hash", "init_hash", "data") if not values.get(name)]
    if missing:
        raise ValueError(f"{where} records no {' and no '.join(missing)}; without it no fair comparison can be checked")
    try:
        config, data = values["config"], values["data"]
        tasks = {name: scores.from_json(task, f"task {name}") for name, task in values.get("tasks", {}).items()}
        record = Record(**values | {"config": _completed(config), "data": _with_rule(config, data), "tasks": tasks})
        if record.tokens_per_step < 1 or record.seed < 0 or not record.activation:
            raise ValueError("its config makes no sense")
        if not all(isinstance(launch, dict) for launch in record.launches):
            raise ValueError("its provenance is not that of a run")
        tables = [record.evaluations, record.training, record.documents, *record.gains.values(), *record.shapes.values()]
        tables += record.coefficients.values()
        if not all(isinstance(number, int | float) for table in tables for column in table.values() for number in column):
            raise ValueError("a column holds something else than numbers")
        if any(len({len(column) for column in table.values()}) > 1 for table in tables) or not record.evaluations["val_loss"]:
            raise ValueError("columns of a table are empty or differ in length")
        if record.documents:
            loss = part_of(record.documents)[0]
            if not abs(loss - record.val_loss) <= _AGREEMENT * abs(record.val_loss):
                raise ValueError(
                    f"its documents have a loss of {loss:.6g} and its last evaluation {record.val_loss:.6g}: other weights, or "
                    f"other validation data; remove its {MEASURED}, or train it again"
                )
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: not the record of a run ({error})") from None
    return record


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the fields that came after it: their defaults are what runs did before."""
    return {f.name: f.default for f in fields(Config) if f.default is not MISSING} | config


def _provenance(run: dict[str, Any]) -> dict[str, Any]:
    """Where a run comes from: run.json's first launch, and those that resumed it."""
    first: dict[str, Any] = {name: run.get(name) for name in ("commit", "dirty", "hardware", "command")}
    names = ("step", "commit", "dirty", "hardware")
    resumed = [{name: launch.get(name) for name in names} for launch in run.get("resumed") or []]
    return first | ({"resumed": resumed} if resumed else {})


def _evaluated(run: dict[str, Any]) -> dict[str, Any] | None:
    """run.json's `data`, with what the last evaluation took: a run may have begun with another eval_tokens."""
    last = {"val_rule": run.get("val_rule"), "val_targets": run.get("num_targets")}
    data = run.get("data")
    return data | {name: value for name, value in last.items() if value is not None} if isinstance(data, dict) else None


def _with_rule(config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """What was evaluated, with the rule by which its targets were taken, which runs before 2026-11-27 did not tell."""
    whole = not config["eval_tokens"] or data.get("val_targets", config["eval_tokens"]) < config["eval_tokens"]
    return {"val_rule": EVERYTHING if whole else FROM_START} | data if "val_targets" in data else data


def to_json(record: Record) -> dict[str, Any]:
    """The inverse of `from_json`. Losses keep seven digits, as float32 has them, shapes four; the configuration is exact."""
    digits = {"config": 17, "shapes": 4, "coefficients": 4}
    short = {name: rounded(value, digits.get(name, 7)) for name, value in asdict(replace(record, tasks={})).items()}
    return short | {"tasks": {name: scores.to_json(task) for name, task in record.tasks.items()}}


def _thinned(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Training loss as at most `_CURVE_POINTS` means; a step with no finite loss is left out."""
    rows = [row for row in rows if row["train_loss"] is not None]
    chunks = np.array_split(np.arange(len(rows)), min(len(rows), _CURVE_POINTS)) if rows else []
    return {name: [float(np.mean([rows[i][name] for i in chunk])) for chunk in chunks] for name in ("step", "train_loss")}


def _observed(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows that hold telemetry, and the layers that it is of."""
    ending = ".second_moment"
    rows = [row for row in rows if any(key.endswith(ending) for key in row)]
    return rows, [key.removesuffix(ending) for key in (rows[0] if rows else {}) if key.endswith(ending)]


def _gains(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """From telemetry's keys, <layer>.second_moment and so on."""
    rows, layers = _observed(rows)
    tables = {}
    for layer in layers:
        needed = [f"{layer}.{what}" for what in ("second_moment", "slope_moment", "input_std", "input_mean")]
        whole = [row for row in rows if None not in (row.get(key) for key in needed)]
        squares = [row[f"{layer}.input_std"] ** 2 + row[f"{layer}.input_mean"] ** 2 for row in whole]
        second = [row[f"{layer}.second_moment"] / square for row, square in zip(whole, squares, strict=True)]
        slopes = [row[f"{layer}.slope_moment"] for row in whole]
        tables[layer] = {"step": [row["step"] for row in whole], "second_moment": second, "slope": slopes}
    return tables


def _coefficients(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """From telemetry's keys: <layer>.<parameter>.<index>."""
    rows, layers = _observed(rows)
    tables = {}
    for layer in layers:
        names = [key.removeprefix(f"{layer}.") for key in rows[0] if key.startswith(f"{layer}.")]
        names = [name for name in names if name.rpartition(".")[2].isdecimal()]
        whole = [row for row in rows if None not in (row.get(f"{layer}.{name}") for name in names)]
        if names and whole:
            tables[layer] = {"step": [row["step"] for row in whole]}
            tables[layer] |= {name: [row[f"{layer}.{name}"] for row in whole] for name in names}
    return tables


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def rounded(value: Any, digits: int) -> Any:
    """The value with all floats in it at so many digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {name: rounded(item, digits) for name, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list | tuple) else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no object")
    return values


_STEPS_BETWEEN = 3  # shapes between the first step and the last
_POINTS = 61  # of a shape
_REACH = 3.0  # a shape is drawn up to so many standard deviations of the inputs


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


def shapes(model: GPT, config: Config, rows: list[dict[str, Any]]) -> dict[str, Columns]:
    """Layer -> columns x and F(x) at step 0, at some telemetry `rows` and at the last step, for every learnable activation.

    x reaches as far as the trained model's inputs. Where channels differ F is their mean, and telemetry, which has means of
    coefficients, tells nothing of it.
    """
    learned = {name: module.cpu() for name, module in model.named_modules() if isinstance(module, Activation)}
    learned = {name: module for name, module in learned.items() if any(True for _ in module.parameters())}
    if not learned:
        return {}
    samples = sample_inputs(model, config)
    stds = {name: float(sample.std()) for name, sample in samples.items()}
    tables: dict[str, Columns] = {}
    for name, module in learned.items():
        first = MLP(config.gpt(config.vocab_size), module.layer).act.cpu()
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
        half = float(x[1] - x[0]) / 2
        counts = torch.histc(samples[name], len(x), float(x[0]) - half, float(x[-1]) + half)
        tables[name]["density"] = (counts / counts.max()).tolist()
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
