"""From records to verdicts: which arms are compared with which, and what the differences allow one to say."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from activations import registry
from comparison import fairness
from comparison.arm import Arm, Values, arms_of
from comparison.record import Record, short
from comparison.results import Results, Settings
from comparison.statistics import Interval, crossed, holm, paired_t, reached

SIGNIFICANCE = 0.05
FEW_DOCUMENTS, LARGE_SHARE = 20, 0.2  # fewer documents, or one with a larger share of the targets, carry no interval


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
    fairness.check(results.records, settings.free)
    arms = arms_of(results)
    baseline = _baseline(settings, arms)
    contrasts = [
        _contrast(arm, reference, about, settings)
        for arm, reference, about in _pairs(arms, baseline, ", ".join(settings.varied))
        if set(arm.seeds) & set(reference.seeds)
    ]
    return Summary(tuple(arms), _corrected(contrasts), baseline, tuple(_notes(results, arms, baseline)))


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
    baseline = registry.check(settings.baseline)
    failed = any(failure.arm.split(" ")[0] == short(baseline) for failure in settings.failures)
    if baseline not in {arm.activation for arm in arms} and not failed:
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
        documents=_over_documents(pairs, held_out=bool(settings.rates)),
        tokens_ratio=float(np.mean([ratio[0] for ratio in reached_ratios])) if reached_ratios else None,
        seconds_ratio=float(np.mean(seconds)) if seconds else None,
        seeds_reached=len(reached_ratios),
    )


def _corrected(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """With p-values corrected for the number of contrasts about the same: each asks a question of its own."""
    found = list(contrasts)
    for about in {contrast.about for contrast in contrasts}:
        places = [i for i, contrast in enumerate(contrasts) if contrast.about == about]
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
    notes = fairness.notes(results.records) + _few_documents(results)
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
