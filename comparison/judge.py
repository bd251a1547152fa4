"""From records to verdicts: arms, their paired differences, and what the intervals of these allow one to say."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from comparison.plan import Settings, label, short
from comparison.record import Record
from comparison.results import Results, check_comparable, provenance_notes
from comparison.statistics import Interval, crossed, holm, paired_t, perplexity, reached, spread
from config.arm import check, family
from evaluation.scores import Metric, Scores

Values = tuple[Any, ...]  # of the varied fields, in the order of Settings.varied
SIGNIFICANCE = 0.05
FEW_DOCUMENTS, LARGE_SHARE = 20, 0.2  # fewer documents, or one with a larger share of the targets, carry no interval
_LEFT_OUT = ("byte_perplexity",)  # of tasks: bits_per_byte says the same


@dataclass(frozen=True)
class Arm:
    """One activation with one set of varied values, at its learning rate. Losses: nats a token, one a record, by seed."""

    label: str
    values: Values
    length: int | None
    """Its number of steps, where lengths are compared each apart."""
    curve: str
    """The label without its length."""
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
    varied = dict(zip(settings.varied, values, strict=True))
    name = label(spec, varied)
    length = int(varied.pop("max_steps")) if settings.lengths else None
    return Arm(
        label=name,
        values=values,
        length=length,
        curve=label(spec, varied),
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
    def shown(self) -> Interval | None:
        """The interval over seeds, or over documents where there is one seed."""
        return self.interval if self.interval.low is not None else self.documents

    @property
    def verdict(self) -> str:
        """What the interval allows one to say."""
        interval, over = self.shown, "" if self.shown is self.interval else ", one seed"
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

    def reference(self, arm: Arm) -> Arm | None:
        """The arm that it is compared with: the baseline's, else the first of its family or of its values."""
        contrast = self.contrast(arm) or next((c for c in self.contrasts if c.arm == arm.label), None)
        return next((other for other in self.arms if contrast and other.label == contrast.reference), None)

    @property
    def lengths(self) -> list[int]:
        """All numbers of steps, shortest first, where lengths are compared each apart."""
        return sorted({arm.length for arm in self.arms if arm.length is not None})

    def at(self, length: int) -> "Summary":
        """The summary of the runs of one length."""
        arms = tuple(arm for arm in self.arms if arm.length == length)
        labels = {arm.label for arm in arms}
        return replace(self, arms=arms, contrasts=tuple(c for c in self.contrasts if c.arm in labels))

    def curves(self) -> dict[str, list[Arm]]:
        """What an arm is called without its length -> its arms, shortest first; the baseline first, then by the last effect."""
        found: dict[str, list[Arm]] = {}
        for arm in sorted(self.arms, key=lambda arm: (arm.activation != self.baseline, -(arm.length or 0), self.effect(arm))):
            found.setdefault(arm.curve, []).insert(0, arm)
        return found

    def effect(self, arm: Arm) -> float:
        """The difference to the baseline; the loss of what is compared with none."""
        contrast = self.contrast(arm)
        return contrast.interval.mean if contrast else arm.loss


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
    lengths = {arm.label: arm.length for arm in arms}
    return _by_effect(Summary(tuple(arms), _corrected(contrasts, lengths), baseline, notes))


def _by_effect(summary: Summary) -> Summary:
    """Within each set of varied values the baseline first, then the lowest loss; contrasts alike within one question."""
    values = list(dict.fromkeys(arm.values for arm in summary.arms))
    questions = list(dict.fromkeys((contrast.about, contrast.reference) for contrast in summary.contrasts))

    def place(arm: Arm) -> tuple[int, bool, bool, float]:
        return values.index(arm.values), arm.activation != summary.baseline, not summary.contrast(arm), summary.effect(arm)

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
    scored = [asdict(result) | {"verdict": result.verdict} for result in task_results(summary)]
    return {"baseline": summary.baseline, "arms": arms, "contrasts": contrasts, "notes": summary.notes, "tasks": scored}


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
        reference = firsts_of_values.setdefault((arm.activation, arm.length), arm)
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


def task_results(summary: Summary) -> list[TaskResult]:
    """Every arm in every metric whose items are kept, in the order of tasks, metrics and arms."""
    named = [(name, metric) for arm in summary.arms for record in arm.records for name, of in record.tasks.items()
             for metric, one in of.metrics.items() if one.kind and metric not in _LEFT_OUT]  # fmt: skip
    return [
        result
        for name, metric in dict.fromkeys(named)
        for arm in summary.arms
        if (result := _task_result(summary, arm, name, metric))
    ]


def _task_result(summary: Summary, arm: Arm, task: str, metric: str) -> TaskResult | None:
    having = {
        seed: record.tasks[task] for seed, record in zip(arm.seeds, arm.records, strict=True) if _has(record, task, metric)
    }
    if not having:
        return None
    metrics = [of.metrics[metric] for of in having.values()]
    kind = metrics[0].kind
    values = np.array([one.value for one in metrics])
    value = float(np.exp(np.log(values).mean())) if kind == "perplexity" else float(values.mean())
    reference = summary.reference(arm)
    pairs = _scored_alike(having, reference, task, metric) if reference else []
    difference = _task_difference([(mine.metrics[metric], its.metrics[metric]) for mine, its in pairs]) if pairs else None
    items, is_baseline = next(iter(having.values())).items, arm.activation == summary.baseline
    return TaskResult(task, metric, arm.label, value, kind, len(having), items, is_baseline, difference)


def _has(record: Record, task: str, metric: str) -> bool:
    return task in record.tasks and bool(record.tasks[task].metrics.get(metric, Metric(0.0)).kind)


def _scored_alike(having: dict[int, Scores], reference: Arm, task: str, metric: str) -> list[tuple[Scores, Scores]]:
    """Scores of the same items at the same seed."""
    others = {s: r.tasks[task] for s, r in zip(reference.seeds, reference.records, strict=True) if _has(r, task, metric)}
    shared = [(mine, others[seed]) for seed, mine in having.items() if seed in others]
    items = shared[0][0].items_sha256 if shared else ""
    return [pair for pair in shared if all(one.is_of(items, pair[0].harness) for one in pair)]


def _task_difference(pairs: Sequence[tuple[Metric, Metric]]) -> Interval:
    """Over items and seeds, by the two-way clustering that documents and seeds have: `crossed`."""
    first = pairs[0][0]
    weights = np.array(first.weights or [1.0] * len(first.scores))
    signed = 1.0 if first.kind == "mean" else -1.0  # nats are less where the log-probability is more
    unit = 1 / math.log(2) if first.kind == "bits" else 1.0
    scale = weights if first.kind == "mean" else np.ones(len(weights))
    differences = [signed * unit * scale * np.subtract(mine.scores, its.scores) for mine, its in pairs]
    return crossed(differences, weights)
