"""Tasks in a comparison: the runs' scores, and what pairing them item by item and seed by seed says.

Scores are of the last checkpoint, by lm_eval. They lie in the runs' folders (evaluation/) and in results.json.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from comparison.document import Block, Heading, Paragraph, Table
from comparison.judge import Arm, Interval, Summary, crossed, percent
from comparison.record import Record, last_checkpoint
from evaluation import scores, store
from evaluation.request import Request
from evaluation.scores import Metric, Scores
from evaluation.subject import load
from runtime import checkpoint
from runtime.hardware import pick_device

log = logging.getLogger("compare")

_UNKNOWN = "–"
_LEFT_OUT = ("byte_perplexity",)  # bits_per_byte says the same


def score(records: Sequence[Record], request: Request, keep: Callable[[Record, Record], None]) -> None:
    """Score the last checkpoint of each run in the tasks that are asked for; `keep(old, new)` takes every record at once.

    Scores that a record has of the same items, by the same version of lm_eval, are not computed again. A run whose weights
    are gone has none, which the log says.
    """
    prepared = request.prepare()
    for number, record in enumerate(records, 1):
        folder = Path(record.config["out_dir"])
        have = [record.tasks.get(task.name) for task in prepared]
        if all(own and own.is_of(task.sha256, task.harness) for own, task in zip(have, prepared, strict=True)):
            continue
        if not checkpoint.checkpoints(folder):
            log.info("%s: the weights are gone, so it has no scores in tasks", folder)
            continue
        from evaluation import harness

        subject = load(str(last_checkpoint(folder)))
        if record.weights_sha256 not in ("", subject.weights_sha256):
            raise ValueError(f"{folder} holds other weights than those that were measured; train it again in another folder")
        words, device = subject.words(), pick_device(subject.config.device)
        found = {}
        for task in prepared:
            found[task.name] = harness.score(task, subject.model, words, device)
            store.save(subject, task.name, scores.to_json(found[task.name]))
        told = ", ".join(f"{name} {metric} {one.value:.4f}" for name, of in found.items() for metric, one in of.metrics.items())
        log.info("[%d/%d] %s: %s", number, len(records), folder.name, told)
        keep(record, replace(record, tasks=record.tasks | found))


@dataclass(frozen=True)
class TaskResult:
    """An arm in one metric of a task."""

    task: str
    metric: str
    arm: str
    value: float
    """Mean over seeds; of perplexities the geometric mean."""
    kind: str
    seeds: int
    items: int
    is_baseline: bool
    difference: Interval | None
    """To the reference arm, paired by item and seed: of scores (mean), of nats (perplexity), of bits (bits). Of a mean above 0
    is better, of the others below. None for the reference, or where no pair has the same items."""

    @property
    def verdict(self) -> str:
        """What the interval allows one to say."""
        if self.difference is None:
            return "baseline" if self.is_baseline else "not compared"
        if self.difference.holds_zero is None:
            return "one item: nothing can be said"
        if self.difference.holds_zero:
            return "no difference shown"
        return "better" if (self.difference.mean > 0) == (self.kind == "mean") else "worse"


def judge(summary: Summary) -> list[TaskResult]:
    """Every arm in every metric whose items are kept, in the order of tasks, metrics and arms."""
    named = [(name, metric) for arm in summary.arms for record in arm.records for name, of in record.tasks.items()
             for metric, one in of.metrics.items() if one.kind and metric not in _LEFT_OUT]  # fmt: skip
    return [
        result
        for name, metric in dict.fromkeys(named)
        for arm in summary.arms
        if (result := _result(summary, arm, name, metric))
    ]


def _result(summary: Summary, arm: Arm, task: str, metric: str) -> TaskResult | None:
    having = {
        seed: record.tasks[task] for seed, record in zip(arm.seeds, arm.records, strict=True) if _has(record, task, metric)
    }
    if not having:
        return None
    metrics = [of.metrics[metric] for of in having.values()]
    kind = metrics[0].kind
    values = np.array([one.value for one in metrics])
    value = float(np.exp(np.log(values).mean())) if kind == "perplexity" else float(values.mean())
    contrast = summary.contrast(arm) or next((c for c in summary.contrasts if c.arm == arm.label), None)
    reference = next((other for other in summary.arms if contrast and other.label == contrast.reference), None)
    pairs = _pairs(having, reference, task, metric) if reference else []
    difference = _difference([(mine.metrics[metric], its.metrics[metric]) for mine, its in pairs]) if pairs else None
    items, is_baseline = next(iter(having.values())).items, arm.activation == summary.baseline
    return TaskResult(task, metric, arm.label, value, kind, len(having), items, is_baseline, difference)


def _has(record: Record, task: str, metric: str) -> bool:
    return task in record.tasks and bool(record.tasks[task].metrics.get(metric, Metric(0.0)).kind)


def _pairs(having: dict[int, Scores], reference: Arm, task: str, metric: str) -> list[tuple[Scores, Scores]]:
    """Scores of the same items at the same seed."""
    others = {s: r.tasks[task] for s, r in zip(reference.seeds, reference.records, strict=True) if _has(r, task, metric)}
    shared = [(mine, others[seed]) for seed, mine in having.items() if seed in others]
    items = shared[0][0].items_sha256 if shared else ""
    return [pair for pair in shared if all(one.is_of(items, pair[0].harness) for one in pair)]


def _difference(pairs: Sequence[tuple[Metric, Metric]]) -> Interval:
    """Over items and seeds, by the two-way clustering that documents and seeds have: `judge.crossed`."""
    first = pairs[0][0]
    weights = np.array(first.weights or [1.0] * len(first.scores))
    signed = 1.0 if first.kind == "mean" else -1.0  # nats are less where the log-probability is more
    unit = 1 / math.log(2) if first.kind == "bits" else 1.0
    scale = weights if first.kind == "mean" else np.ones(len(weights))
    differences = [signed * unit * scale * np.subtract(mine.scores, its.scores) for mine, its in pairs]
    return crossed(differences, weights)


def to_json(summary: Summary) -> list[dict[str, Any]]:
    """The results for machines."""
    return [asdict(result) | {"verdict": result.verdict} for result in judge(summary)]


def blocks(summary: Summary) -> list[Block]:
    """The section of a report; empty where no run has scores."""
    results = judge(summary)
    if not results:
        return []
    header = ("task", "activation", "verdict", "metric", "value", "Δ", "95 % over items and seeds", "items", "seeds")
    rows = []
    for result in results:
        change, limits = _told(result)
        counts = (f"{result.items:,}", str(result.seeds))
        rows.append((result.task, result.arm, result.verdict, result.metric, f"{result.value:.4f}", change, limits, *counts))
    return [Heading("Tasks"), Table(header, tuple(rows), words=4, name="tasks"), Paragraph(f"{_origin(summary)} {_METHOD}")]


def _told(result: TaskResult) -> tuple[str, str]:
    """The difference and its limits, in points, per cent or bits."""
    found = result.difference
    if found is None:
        return _UNKNOWN, _UNKNOWN

    def cell(value: float) -> str:
        if result.kind == "mean":
            return f"{100 * value:+.2f}"
        return f"{percent(value):+.2f} %" if result.kind == "perplexity" else f"{value:+.4f}"

    limits = _UNKNOWN if found.low is None or found.high is None else f"{cell(found.low)} to {cell(found.high)}"
    return cell(found.mean), limits


def _origin(summary: Summary) -> str:
    """Where the items come from, and which of them were scored."""
    told = []
    for name, of in {n: of for arm in summary.arms for record in arm.records for n, of in record.tasks.items()}.items():
        which = "all" if of.every == 1 else f"one item in {of.every} of each set,"
        told.append(f"{name}: {which} {of.items:,} of {of.available:,} items ({of.source}, {of.harness})")
    return "; ".join(told) + "."


_METHOD = (
    "Scores are of the last checkpoints, by lm_eval's definitions, in float32. Differences are to the baseline, paired by item "
    "and by seed: percentage points of accuracy, per cent of perplexity, or bits per byte. Their intervals cover other items "
    "and other seeds (two-way clustering, as for documents); with one seed they cover items alone. They are not widened for "
    "the number of comparisons. Accuracies are better where they are higher, perplexities and bits where they are lower."
)
