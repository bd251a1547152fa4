"""What a model scored in a task: the task's own numbers, and every item's, so that two models can be paired item by item."""

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["mean", "perplexity", "bits"]


@dataclass(frozen=True)
class Metric:
    """One number of a task: `value` is lm_eval's, over all items."""

    value: float
    kind: Kind | Literal[""] = ""
    """How the value follows from the items: the mean of scores, weighted by the weights; exp(-sum(scores) / sum(weights)) of
    log-probabilities in nats; or such a quotient in bits. Empty: in another way, and no items are kept."""
    scores: tuple[float, ...] = ()
    """One an item."""
    weights: tuple[float, ...] = ()
    """One an item: its number of words or bytes, or what it counts where sets of unequal size count alike; empty: 1 each."""

    @property
    def error(self) -> float | None:
        """Standard error of a mean over items, sd / sqrt(n); None for other kinds."""
        if self.kind != "mean" or len(self.scores) < 2:
            return None
        return statistics.stdev(self.scores) / math.sqrt(len(self.scores))


@dataclass(frozen=True)
class Scores:
    """A model's scores in one task."""

    task: str
    """As users call it."""
    harness: str
    """Version of lm_eval, whose definitions of tasks and metrics these are."""
    source: str
    """Where the items come from: a file with its SHA-256, or the hub."""
    every: int
    """Every how manieth item of each set was scored; 1 is all of them."""
    available: int
    """Items that the task has."""
    items_sha256: str
    """Over the texts that were scored, in order: models can be paired where it is the same."""
    sets: dict[str, int]
    """lm_eval's name of each part of the task -> its number of items, in the order of the scores."""
    metrics: dict[str, Metric]
    by_set: dict[str, dict[str, float]]
    """Where there are several sets: metric -> set -> value. The value of the task is then their mean, or as lm_eval's group
    says the mean weighted by their numbers of items."""

    @property
    def items(self) -> int:
        """How many were scored."""
        return sum(self.sets.values())

    def is_of(self, items_sha256: str, harness: str) -> bool:
        """Whether these are scores of those items by that version of lm_eval."""
        return (self.items_sha256, self.harness) == (items_sha256, harness)


def to_json(scores: Scores) -> dict[str, Any]:
    """For a JSON file; scores that are all 0 or 1 become one string of these digits, others keep seven digits."""
    found = asdict(scores)
    for metric in found["metrics"].values():
        metric["scores"] = _packed(metric["scores"])
        metric["weights"] = list(metric["weights"])
    return found


def from_json(values: Any, where: str) -> Scores:
    """The inverse, of untrusted data. Raises ValueError that begins with `where`."""
    try:
        metrics = {name: _metric(**metric) for name, metric in values["metrics"].items()}
        scores = Scores(**values | {"metrics": metrics})
        words = (scores.task, scores.harness, scores.source, scores.items_sha256)
        if not all(isinstance(word, str) for word in words):
            raise ValueError("its words are none")
        counts = (scores.every, scores.available, *scores.sets.values())
        if not counts or any(type(count) is not int or count < 1 for count in counts):
            raise ValueError("its counts are none")
        if any(metric.kind and len(metric.scores) != scores.items for metric in metrics.values()):
            raise ValueError("it has not one score an item")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: not the scores of a task ({error})") from None
    return scores


def _packed(scores: tuple[float, ...]) -> str | list[float]:
    if all(score in (0, 1) for score in scores):
        return "".join("01"[int(score)] for score in scores)
    return [float(f"{score:.7g}") for score in scores]


def _metric(value: Any, kind: Any, scores: Any, weights: Any) -> Metric:
    unpacked = tuple(float("01".index(digit)) for digit in scores) if isinstance(scores, str) else tuple(map(float, scores))
    found = Metric(float(value), kind, unpacked, tuple(map(float, weights)))
    if kind not in ("", "mean", "perplexity", "bits") or (weights and len(weights) != len(unpacked)):
        raise ValueError("a metric is of an unknown kind, or has not one weight an item")
    if not all(map(math.isfinite, (found.value, *unpacked, *found.weights))) or any(weight <= 0 for weight in found.weights):
        raise ValueError("a number is not finite, or a weight not above 0")
    return found
