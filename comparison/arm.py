"""An arm: one activation with its varied values, over seeds, at its learning rate."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from activations import registry
from comparison.record import Record, label, short
from comparison.results import Results, Settings
from comparison.statistics import perplexity, spread

Values = tuple[Any, ...]  # of the varied fields, in the order of Settings.varied


@dataclass(frozen=True)
class Arm:
    """One activation with one set of varied values, at its learning rate. Losses: nats a token, one a record, by seed."""

    label: str
    values: Values
    records: tuple[Record, ...]
    losses: tuple[float, ...]
    bits_per_byte: float | None
    rate: float
    rate_is_at_edge: bool
    """Whether a learning rate beyond the grid might have been better still."""

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.losses))

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds."""
        return spread(self.losses)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss: the geometric mean over seeds; infinite where that overflows."""
        return perplexity(self.loss)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(record.seed for record in self.records)

    @property
    def activation(self) -> str:
        """The canonical spec."""
        return self.records[0].activation

    @property
    def family(self) -> str:
        """The name in front of the spec's colon."""
        return registry.short_name(registry.parse(self.activation)[0])

    def mean(self, name: str) -> float | None:
        """Mean over seeds of a field of the records; None where a run does not know it."""
        values = [getattr(record, name) for record in self.records]
        return None if None in values else float(np.mean(values))


def arms_of(results: Results) -> list[Arm]:
    """The arms of all records, in the order of the settings' activations. Raises ValueError where no rate can be chosen."""
    settings = results.settings
    found: dict[tuple[str, Values], list[Record]] = {}
    for record in results.records:
        values = tuple(record.config[name] for name in settings.varied)
        found.setdefault((record.activation, values), []).append(record)
    specs = dict.fromkeys([*map(registry.check, settings.activations), *(activation for activation, _ in found)])
    if twice := [spec for spec, count in Counter(map(short, specs)).items() if count > 1]:
        raise ValueError(
            f"{twice[0]} stands for two versions of a file in these runs; compare runs of one, or give each a file of its own"
        )
    keys = sorted(found, key=lambda key: list(specs).index(key[0]))  # stable: varied values stay in the order they came
    return [_arm(activation, values, found[activation, values], settings) for activation, values in keys]


def best_rate(records: Sequence[Record], seeds: Sequence[int] = ()) -> float:
    """The learning rate with the lowest mean loss over `seeds` (empty: all) on the selecting half of the validation documents.

    A rate at which some of these seeds did not finish loses to one at which they did. Where none of them finished, all choose.
    """
    losses: dict[float, list[float]] = {}
    chosen = [record for record in records if record.seed in seeds] or records
    for record in chosen:
        losses.setdefault(record.config["learning_rate"], []).append(record.part("selects")[0])
    return min(losses, key=lambda rate: (-len(losses[rate]), float(np.mean(losses[rate]))))


def _arm(spec: str, values: Values, records: list[Record], settings: Settings) -> Arm:
    rates = sorted({record.config["learning_rate"] for record in records})
    if settings.rates and any(not record.documents for record in records):
        raise ValueError(
            f"{spec}: no losses by document, so nothing held out to choose the learning rate on; run compare.py eval on it"
        )
    rate = best_rate(records, settings.rate_seeds) if len(rates) > 1 else rates[0]
    records = sorted((record for record in records if record.config["learning_rate"] == rate), key=lambda record: record.seed)
    pairs = [record.part("reports") if settings.rates else (record.val_loss, record.bits_per_byte) for record in records]
    bits = [bits for _, bits in pairs]
    return Arm(
        label=label(spec, dict(zip(settings.varied, values, strict=True))),
        values=values,
        records=tuple(records),
        losses=tuple(loss for loss, _ in pairs),
        bits_per_byte=None if None in bits else float(np.mean([b for b in bits if b is not None])),
        rate=rate,
        rate_is_at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
    )
