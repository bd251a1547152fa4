"""From records to verdicts: arms, their paired differences, and what the intervals of these allow one to say.

Statistics come first, and know nothing of runs: arrays in, numbers out. A difference is `arm - reference`, so that a negative
one means a lower loss. Where an interval cannot be had (one seed, one document) the answer is None, never a guess.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comparison.plan import Settings, label, short
from comparison.record import Record
from comparison.results import Results, check_comparable, provenance_notes
from config.arm import check, family

Values = tuple[Any, ...]  # of the varied fields, in the order of Settings.varied
CONFIDENCE = 0.95
_OVERFLOWS = 700.0  # nats; exp of more is infinite in float64
SIGNIFICANCE = 0.05
FEW_DOCUMENTS, LARGE_SHARE = 20, 0.2  # fewer documents, or one with a larger share of the targets, carry no interval


@dataclass(frozen=True)
class Interval:
    """A mean, its two-sided confidence limits at `CONFIDENCE`, and the two-sided p-value of a mean of zero.

    `low`, `high` and `p` are None where they are not defined: one pair has a difference and no spread.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def holds_zero(self) -> bool | None:
        """Whether zero lies within the limits (limits included); None without limits."""
        return None if self.low is None or self.high is None else self.low <= 0.0 <= self.high


def paired_t(arm: ArrayLike, reference: ArrayLike) -> Interval:
    """Student's paired t interval of `mean(arm - reference)` over n seeds: mean +- t(n-1) * sd / sqrt(n).

    arm, reference: (n,), element i of both from the same seed. Equal differences have no spread: the limits coincide,
    and p is 1 where they are zero and 0 elsewhere, the limits of the t test. Raises ValueError on unequal lengths or none.
    """
    differences = np.subtract(*_paired(arm, reference))
    mean = float(differences.mean())
    if len(differences) == 1:
        return Interval(mean)
    # Differences of floats that agree to the last bits have no spread that a t test could use.
    if float(np.ptp(differences)) <= 8 * np.finfo(np.float64).eps * max(1.0, abs(mean)):
        return Interval(mean, mean, mean, 1.0 if mean == 0.0 else 0.0)
    from scipy import stats  # where it is missing, a machine can still make the runs

    test = stats.ttest_1samp(differences, 0.0)
    limits = test.confidence_interval(CONFIDENCE)
    return Interval(mean, float(limits.low), float(limits.high), float(test.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number (Holm 1979, step-down); the family-wise error rate holds under any dependence.

    Sorted ascending, p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)). None stays None and is not counted.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def crossed(differences: ArrayLike, targets: ArrayLike) -> Interval:
    """Interval of the difference in loss, nats per target, that covers other documents and, from two seeds on, other seeds.

    differences: (S, N), nats of the arm less nats of the reference, each summed over a document; row s is of seed s.
    targets: (N,), how many targets each document has. The estimate is sum(differences) / (S sum(targets)), the mean over seeds
    of the difference in loss. Its variance is that of two-way clustering (Cameron, Gelbach & Miller 2011, JBES 29(2), 2.3):
    V_seeds + V_documents - V_both, from the residuals e_sd = (d_sd - estimate t_d) / (S sum(t)), each term with g / (g - 1)
    for its g clusters; never below the larger of the first two. Limits: estimate +- t(min(S, N) - 1) sqrt(V). So it holds
    its estimate, and `paired_t` of the same seeds wherever S <= N. With one seed it is V_documents alone, with t(N - 1): the
    ratio estimator of sampling theory. No p-value. One document: no limits. Raises ValueError on shapes that do not fit.
    """
    values, counts = np.asarray(differences, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if values.ndim != 2 or not values.size or counts.shape != values.shape[1:] or counts.min() < 0 or counts.sum() == 0:
        raise ValueError(f"targets of shape {counts.shape} do not count the targets of documents of shape {values.shape}")
    values, counts = values[:, counts > 0], counts[counts > 0]
    seeds, documents = values.shape
    mean = float(values.sum() / (seeds * counts.sum()))
    if documents < 2:
        return Interval(mean)
    residuals = (values - mean * counts) / (seeds * counts.sum())
    variance = _between(residuals.sum(axis=0))
    if seeds > 1:
        over_seeds = _between(residuals.sum(axis=1))
        variance = max(over_seeds, variance, over_seeds + variance - _between(residuals.ravel()))
    from scipy import stats

    clusters = min(seeds, documents) if seeds > 1 else documents
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, clusters - 1)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def _between(sums: NDArray[np.float64]) -> float:
    """The variance of the total of g independent clusters' residual sums: g / (g - 1) times the sum of their squares."""
    return len(sums) / (len(sums) - 1) * float((sums**2).sum())


def reached(x: ArrayLike, losses: ArrayLike, goal: float) -> float | None:
    """The first x (tokens, seconds) at which a loss curve is at or below `goal`, linear between points; None if never."""
    at, loss = _paired(x, losses)
    below = np.flatnonzero(loss <= goal)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0:
        return float(at[0])
    share = (loss[i - 1] - goal) / (loss[i - 1] - loss[i])
    return float(at[i - 1] + share * (at[i] - at[i - 1]))


def spread(values: ArrayLike) -> float | None:
    """Sample standard deviation (n - 1); None for one value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1)) if len(array) > 1 else None


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows, as a diverged run's does."""
    return math.exp(loss) if loss < _OVERFLOWS else math.inf


def percent(difference: float) -> float:
    """A difference in loss (nats) as a change of perplexity in percent: 100 (exp(d) - 1); infinite where that overflows."""
    return 100.0 * math.expm1(difference) if difference < _OVERFLOWS else math.inf


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"pairs need two equally long rows of numbers, not shapes {first.shape} and {second.shape}")
    return first, second


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
    loss_by_rate: dict[float, float]
    """Mean loss by which the learning rate was chosen, for each of several; else empty."""

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
        """The canonical name: the spec, or `gated(SPEC)`."""
        return self.records[0].activation

    @property
    def family(self) -> str:
        """The name in front of the spec's colon; that of a gate is a family of its own."""
        return family(self.activation)

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
    specs = dict.fromkeys([*map(check, settings.activations), *(activation for activation, _ in found)])
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
    losses = _losses_by_rate(records, seeds)
    return min(losses, key=lambda rate: (-len(losses[rate]), float(np.mean(losses[rate]))))


def _losses_by_rate(records: Sequence[Record], seeds: Sequence[int]) -> dict[float, list[float]]:
    losses: dict[float, list[float]] = {}
    chosen = [record for record in records if record.seed in seeds] or records
    for record in chosen:
        losses.setdefault(record.config["learning_rate"], []).append(record.part("selects")[0])
    return losses


def _arm(spec: str, values: Values, records: list[Record], settings: Settings) -> Arm:
    rates = sorted({record.config["learning_rate"] for record in records})
    if settings.rates and any(not record.documents for record in records):
        raise ValueError(
            f"{spec}: no losses by document, so nothing held out to choose the learning rate on; run compare.py eval on it"
        )
    rate = best_rate(records, settings.rate_seeds) if len(rates) > 1 else rates[0]
    by_rate = _losses_by_rate(records, settings.rate_seeds) if len(rates) > 1 else {}
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
        loss_by_rate={each: float(np.mean(by_rate[each])) for each in sorted(by_rate)},
    )


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
    """Over validation documents, and over seeds too where there are several; None where the documents are not known."""
    tokens_ratio: float | None
    """Tokens to the reference's final loss, as a share of the reference's own; mean over the seeds that reached it."""
    seconds_ratio: float | None
    """The same in training time: steps times the run's median step time."""
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
        if self.documents and self.documents.holds_zero:
            return f"{direction}, on this text"
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
    """Check that the runs may be compared, choose learning rates, pair by seed, correct for the number of comparisons.

    Raises ValueError where runs differ in more than they should.
    """
    settings = results.settings
    check_comparable(results.records, settings.free)
    arms = arms_of(results)
    baseline = _baseline(settings, arms)
    contrasts = [
        _contrast(arm, reference, about, settings)
        for arm, reference, about in _pairs(arms, baseline, settings)
        if set(arm.seeds) & set(reference.seeds)
    ]
    notes = tuple(_notes(results, arms, baseline))
    lengths = {arm.label: length_of(arm, settings) for arm in arms}
    return _by_effect(Summary(tuple(arms), _corrected(contrasts, lengths), baseline, notes))


def length_of(arm: Arm, settings: Settings) -> int | None:
    """The number of steps of an arm, where lengths are compared each apart."""
    return int(arm.values[settings.varied.index("max_steps")]) if settings.lengths else None


def _by_effect(summary: Summary) -> Summary:
    """Within each set of varied values the baseline first, then the lowest loss; contrasts alike within one question."""
    values = list(dict.fromkeys(arm.values for arm in summary.arms))
    questions = list(dict.fromkeys((contrast.about, contrast.reference) for contrast in summary.contrasts))

    def place(arm: Arm) -> tuple[int, bool, bool, float]:
        contrast = summary.contrast(arm)
        effect = contrast.interval.mean if contrast else arm.loss
        return values.index(arm.values), arm.activation != summary.baseline, contrast is None, effect

    return replace(
        summary,
        arms=tuple(sorted(summary.arms, key=place)),
        contrasts=tuple(sorted(summary.contrasts, key=lambda c: (questions.index((c.about, c.reference)), c.interval.mean))),
    )


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


def _baseline(settings: Settings, arms: list[Arm]) -> str:
    if not settings.baseline:
        return arms[0].activation
    baseline = check(settings.baseline)
    failed = any(failure.arm.split(" ")[0] == short(baseline) for failure in settings.failures)
    if baseline not in {arm.activation for arm in arms} and not failed:
        raise ValueError(
            f"baseline {settings.baseline!r} is not among the runs: {', '.join(dict.fromkeys(arm.label for arm in arms))}"
        )
    return baseline


def _pairs(arms: list[Arm], baseline: str, settings: Settings) -> list[tuple[Arm, Arm, str]]:
    """(arm, reference, about): each with the baseline, each variant with its family's first, each value with the first one.

    A length is no value here: runs of two lengths are no pair.
    """
    varied = ", ".join(name for name in settings.varied if name != "max_steps" or not settings.lengths)
    bases = [arm for arm in arms if arm.activation == baseline]
    pairs = [(arm, base, "activation") for base in bases for arm in arms if arm is not base and arm.values == base.values]
    firsts: dict[tuple[str, Values], Arm] = {}
    for arm in arms:
        reference = firsts.setdefault((arm.family, arm.values), arm)
        if reference is not arm and baseline not in (arm.activation, reference.activation):
            pairs.append((arm, reference, arm.family))
    firsts_of_values: dict[tuple[str, int | None], Arm] = {}
    for arm in arms:
        reference = firsts_of_values.setdefault((arm.activation, length_of(arm, settings)), arm)
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
        documents=_over_documents(pairs, held_out=bool(settings.rates)),
        tokens_ratio=float(np.mean([ratio[0] for ratio in reached_ratios])) if reached_ratios else None,
        seconds_ratio=float(np.mean(seconds)) if seconds else None,
        seeds_reached=len(reached_ratios),
    )


def _corrected(contrasts: Sequence[Contrast], lengths: dict[str, int | None]) -> tuple[Contrast, ...]:
    """With p-values corrected for the number of contrasts about the same, at one length: each asks a question of its own."""
    found = list(contrasts)
    questions = [(contrast.about, lengths[contrast.arm]) for contrast in contrasts]
    for question in set(questions):
        places = [i for i, other in enumerate(questions) if other == question]
        for i, p in zip(places, holm([contrasts[i].interval.p for i in places]), strict=True):
            found[i] = replace(contrasts[i], p_holm=p)
    return tuple(found)


def _over_documents(pairs: Sequence[tuple[Record, Record]], held_out: bool) -> Interval | None:
    """The interval over documents and seeds; `held_out`: on what chose no learning rate. None where documents differ."""
    targets = pairs[0][0].documents.get("targets")
    if not targets or any(record.documents.get("targets") != targets for pair in pairs for record in pair):
        return None
    halves = [[record.half("reports") if held_out else record.documents for record in pair] for pair in pairs]
    differences = [np.subtract(arm["nats"], reference["nats"]) for arm, reference in halves]
    return crossed(differences, halves[0][0]["targets"])


def _ratios(arm: Record, reference: Record) -> tuple[float, float | None] | None:
    """(tokens, seconds) to the reference's final loss, each as a share of what the reference took; None if never reached.

    Seconds are steps times the median step time: the wall clock of a run counts evaluations, and pauses of its machine.
    """
    goal = reference.val_loss
    mine, its = (reached(record.tokens_curve(), record.evaluations["val_loss"], goal) for record in (arm, reference))
    if mine is None or not its:
        return None
    if not arm.ms_per_step or not reference.ms_per_step:
        return mine / its, None
    step_times = [record.ms_per_step / record.tokens_per_step for record in (arm, reference) if record.ms_per_step]
    return mine / its, mine / its * step_times[0] / step_times[1]


def _notes(results: Results, arms: list[Arm], baseline: str) -> list[str]:
    notes = provenance_notes(results.records) + _few_documents(results)
    notes += [
        f"{arm.label}: the best learning rate, {arm.rate:g}, is at the edge of its grid." for arm in arms if arm.rate_is_at_edge
    ]
    notes += [f"Failed: {failure.run}: {failure.reason}" for failure in results.settings.failures]
    if baseline not in {arm.activation for arm in arms}:
        notes.append(f"The baseline {short(baseline)} has no finished run, so nothing is compared with it.")
    seeds = {arm.label: arm.seeds for arm in arms}
    if len(set(seeds.values())) > 1:
        notes.append(
            "Seeds are not the same everywhere: "
            + "; ".join(f"{label}: {s}" for label, s in seeds.items())
            + ". Pairs are of shared seeds."
        )
    return notes


def _few_documents(results: Results) -> list[str]:
    """A warning where intervals over documents rest on few of them."""
    first = next((record for record in results.records if record.documents), None)
    if not first:
        return ["No losses by document are known: intervals speak about seeds on this text, not about other text."]
    number, largest = documents_of(first)
    if first.documents_are_windows:
        return [
            f"The data have no meta.json, so nothing is known of their documents: {number} windows of validation text stand "
            "for them. Neighbouring windows are alike, so intervals over them are too narrow."
        ]
    if number >= FEW_DOCUMENTS and largest <= LARGE_SHARE:
        return []
    return [
        f"The validation targets lie in {number} documents, the largest with {100 * largest:.0f} % of them: too few to say how "
        f"much depends on this text (fewer than {FEW_DOCUMENTS}, or one with more than {100 * LARGE_SHARE:.0f} %)."
    ]


def documents_of(record: Record) -> tuple[int, float]:
    """How many validation documents a record has, and the largest one's share of the targets."""
    targets = record.documents["targets"]
    return len(targets), max(targets) / sum(targets)
