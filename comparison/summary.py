"""From records to verdicts: arms (an activation with its varied values, over seeds) and contrasts between two of them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from activations import registry
from comparison import fairness
from comparison.record import Record
from comparison.results import Results, Settings
from comparison.statistics import Interval, holm, paired_bootstrap, paired_t, reached, spread

SIGNIFICANCE = 0.05
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
        """exp of the mean loss: the geometric mean over seeds."""
        return math.exp(self.loss)

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
        return registry.parse(self.activation)[0]

    def mean(self, name: str) -> float | None:
        """Mean over seeds of a field of the records; None where a run does not know it."""
        values = [getattr(record, name) for record in self.records]
        return None if None in values else float(np.mean(values))


@dataclass(frozen=True)
class Contrast:
    """`arm - reference` in loss, paired by seed."""

    arm: str
    reference: str
    about: str
    """What the two differ in: activation, the options of one family (its name), or the varied fields."""
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    interval: Interval
    p_holm: float | None
    documents: Interval | None
    """Bootstrap over validation documents for the first seed alone."""
    tokens_ratio: float | None
    """Tokens to the reference's final loss, as a share of the reference's own; mean over the seeds that reached it."""
    seconds_ratio: float | None
    seeds_reached: int

    @property
    def verdict(self) -> str:
        """What the interval allows one to say."""
        interval, over = (self.interval, "") if self.interval.holds_zero is not None else (self.documents, ", one seed")
        if interval is None or interval.holds_zero is None:
            return "one seed: nothing can be said"
        if interval.holds_zero:
            return "no difference shown" + over
        direction = "lower loss" if interval.mean < 0 else "higher loss"
        if self.p_holm is not None and self.p_holm >= SIGNIFICANCE:
            return f"{direction}, but not after correction"
        return direction + over


@dataclass(frozen=True)
class Summary:
    """All arms, and all contrasts: against the baseline activation, within a family, between varied values."""

    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    baseline: str
    notes: tuple[str, ...]

    def contrast(self, arm: Arm) -> Contrast | None:
        """The one against the baseline activation."""
        return next((c for c in self.contrasts if c.arm == arm.label and c.about == "activation"), None)


def summarise(results: Results) -> Summary:
    """Check that the runs may be compared, choose learning rates, pair by seed, correct for the number of contrasts.

    Raises ValueError where runs differ in more than they should.
    """
    settings = results.settings
    fairness.check(results.records, settings.free)
    arms = _arms(results)
    baseline = _baseline(settings, arms)
    contrasts = [
        _contrast(arm, reference, about, settings)
        for arm, reference, about in _pairs(arms, baseline, ", ".join(settings.varied))
        if set(arm.seeds) & set(reference.seeds)
    ]
    corrected = holm([contrast.interval.p for contrast in contrasts])
    contrasts = [replace(contrast, p_holm=p) for contrast, p in zip(contrasts, corrected, strict=True)]
    return Summary(tuple(arms), tuple(contrasts), baseline, tuple(_notes(results, arms)))


def short(spec: str) -> str:
    """A spec as people write it: degrees, and the options that are not at their defaults."""
    name, options = registry.parse(spec)
    family = registry.family(name)
    kept = [
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in options.items()
        if key in family.degrees or value != family.options[key].default
    ]
    return ":".join([name, ",".join(kept)]) if kept else name


def best_rate(records: Sequence[Record], seeds: Sequence[int] = ()) -> float:
    """The learning rate with the lowest mean loss over `seeds` (empty: all) on the selecting half of the validation documents.

    A rate at which some of these seeds did not finish loses to one at which they did.
    """
    losses: dict[float, list[float]] = {}
    for record in records:
        if not seeds or record.seed in seeds:
            losses.setdefault(record.config["learning_rate"], []).append(record.part("selects")[0])
    return min(losses, key=lambda rate: (-len(losses[rate]), float(np.mean(losses[rate]))))


def to_json(summary: Summary) -> dict[str, Any]:
    """The summary for machines: labels and numbers, the records left out."""
    arms = [
        {
            "label": arm.label, "activation": arm.activation, "seeds": arm.seeds, "losses": arm.losses, "loss": arm.loss,
            "perplexity": arm.perplexity, "bits_per_byte": arm.bits_per_byte, "learning_rate": arm.rate,
        }
        for arm in summary.arms
    ]  # fmt: skip
    contrasts = [asdict(contrast) | {"verdict": contrast.verdict} for contrast in summary.contrasts]
    return {"baseline": summary.baseline, "arms": arms, "contrasts": contrasts, "notes": summary.notes}


def _arms(results: Results) -> list[Arm]:
    settings = results.settings
    found: dict[tuple[str, Values], list[Record]] = {}
    for record in results.records:
        values = tuple(record.config[name] for name in settings.varied)
        found.setdefault((record.activation, values), []).append(record)
    specs = dict.fromkeys([*map(registry.check, settings.activations), *(activation for activation, _ in found)])
    keys = sorted(found, key=lambda key: list(specs).index(key[0]))  # stable: varied values stay in the order they came
    return [_arm(short(activation), values, found[activation, values], settings) for activation, values in keys]


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
        label=" ".join([spec, *(f"{name}={value}" for name, value in zip(settings.varied, values, strict=True))]),
        values=values,
        records=tuple(records),
        losses=tuple(loss for loss, _ in pairs),
        bits_per_byte=None if None in bits else float(np.mean([b for b in bits if b is not None])),
        rate=rate,
        rate_is_at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
    )


def _baseline(settings: Settings, arms: list[Arm]) -> str:
    if not settings.baseline:
        return arms[0].activation
    baseline = registry.check(settings.baseline)
    if baseline not in {arm.activation for arm in arms}:
        raise ValueError(
            f"baseline {settings.baseline!r} is not among the runs: {', '.join(dict.fromkeys(arm.label for arm in arms))}"
        )
    return baseline


def _pairs(arms: list[Arm], baseline: str, varied: str) -> list[tuple[Arm, Arm, str]]:
    """(arm, reference, about): each with the baseline, each variant with its family's first, each value with the first one."""
    bases = [arm for arm in arms if arm.activation == baseline]
    pairs = [(arm, base, "activation") for base in bases for arm in arms if arm is not base and arm.values == base.values]
    firsts: dict[tuple[str, Values], Arm] = {}
    for arm in arms:
        reference = firsts.setdefault((arm.family, arm.values), arm)
        if reference is not arm and baseline not in (arm.activation, reference.activation):
            pairs.append((arm, reference, arm.family))
    firsts_of_values: dict[str, Arm] = {}
    for arm in arms:
        reference = firsts_of_values.setdefault(arm.activation, arm)
        if reference is not arm:
            pairs.append((arm, reference, varied))
    return pairs


def _contrast(arm: Arm, reference: Arm, about: str, settings: Settings) -> Contrast:
    losses, references = (
        dict(zip(arm.seeds, arm.losses, strict=True)),
        dict(zip(reference.seeds, reference.losses, strict=True)),
    )
    seeds = tuple(sorted(losses.keys() & references.keys()))
    pairs = [
        (next(r for r in arm.records if r.seed == seed), next(r for r in reference.records if r.seed == seed)) for seed in seeds
    ]
    ratios = [_ratios(*pair) for pair in pairs]
    reached_ratios = [ratio for ratio in ratios if ratio is not None]
    seconds = [ratio[1] for ratio in reached_ratios if ratio[1] is not None]
    return Contrast(
        arm=arm.label,
        reference=reference.label,
        about=about,
        seeds=seeds,
        differences=tuple(losses[seed] - references[seed] for seed in seeds),
        interval=paired_t([losses[seed] for seed in seeds], [references[seed] for seed in seeds]),
        p_holm=None,
        documents=_over_documents(*pairs[0], half=bool(settings.rates)),
        tokens_ratio=float(np.mean([ratio[0] for ratio in reached_ratios])) if reached_ratios else None,
        seconds_ratio=float(np.mean(seconds)) if seconds else None,
        seeds_reached=len(reached_ratios),
    )


def _over_documents(arm: Record, reference: Record, half: bool) -> Interval | None:
    """The bootstrap over documents; with `half` over those that chose no learning rate. None where the documents differ."""
    if not arm.documents or arm.documents["targets"] != reference.documents.get("targets"):
        return None
    part = slice(1, None, 2) if half else slice(None)
    return paired_bootstrap(arm.documents["nats"][part], reference.documents["nats"][part], arm.documents["targets"][part])


def _ratios(arm: Record, reference: Record) -> tuple[float, float | None] | None:
    """(tokens, seconds) to the reference's final loss, each as a share of what the reference took; None if never reached."""
    goal = reference.val_loss
    shares = []
    for column in ("step", "elapsed_s"):
        mine, its = (
            reached(
                np.array(record.evaluations[column]) * (record.tokens_per_step if column == "step" else 1.0),
                record.evaluations["val_loss"],
                goal,
            )
            for record in (arm, reference)
        )
        shares.append(mine / its if mine is not None and its else None)
    return None if shares[0] is None else (shares[0], shares[1])


def _notes(results: Results, arms: list[Arm]) -> list[str]:
    notes = fairness.notes(results.records)
    notes += [
        f"{arm.label}: the best learning rate, {arm.rate:g}, is at the edge of its grid." for arm in arms if arm.rate_is_at_edge
    ]
    notes += [f"Failed: {failure}" for failure in results.settings.failures]
    seeds = {arm.label: arm.seeds for arm in arms}
    if len(set(seeds.values())) > 1:
        notes.append(
            "Seeds are not the same everywhere: "
            + "; ".join(f"{label}: {s}" for label, s in seeds.items())
            + ". Pairs are of shared seeds."
        )
    return notes
