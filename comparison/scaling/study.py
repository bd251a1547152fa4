"""Sweeps of several sizes and lengths side by side: the difference to the baseline, laws of the loss, and what they foretell.

Every size and length is judged by itself, as in its own report. The laws (law.py) go through the means over seeds.
The bootstrap draws the seeds of each size anew, the same ones for all arms and lengths, since they are paired. Its deviation
makes a Student interval, as a bootstrap over few seeds is too narrow by itself. It covers the spread of the seeds alone: not
that of the law's form, nor of the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from comparison import results
from comparison.judge import Arm, Contrast, Summary, summarise
from comparison.plan import short
from comparison.record import Record
from comparison.results import Results
from comparison.scaling.law import KINDS, LEAST, Array, Law, fit
from comparison.statistics import CONFIDENCE, percent
from config.schema import branch_step, names

_MAY_DIFFER = frozenset(  # between sizes and lengths; the rest has to agree, or is a difference of its own
    (
        "n_layer", "n_head", "n_embd", "max_steps", "learning_rate", "min_lr", "warmup_steps", "lr_decay_steps", "branch_from",
        "global_batch_size", "micro_batch_size", "log_interval", "eval_interval", "eval_tokens", "telemetry_interval",
    )
)  # fmt: skip
DRAWS = 200


@dataclass(frozen=True)
class Point:
    """One arm at one size and length."""

    arm: str
    size: str
    """In words, such as 4 x 128."""
    parameters: int
    """Of the baseline there: the N of all arms, so that arms of one size are one N."""
    tokens: int
    losses: dict[int, float]
    """Nats a token, by seed."""
    rate: float
    contrast: Contrast | None
    """None of the baseline."""

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.losses.values())))


@dataclass(frozen=True)
class Forecast:
    """A difference to the baseline that a law gives where nobody has trained: nats a token. Limits None: not known."""

    arm: str
    law: str
    """One of law.KINDS."""
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Scaling:
    """All points, and what follows from them."""

    baseline: str
    points: tuple[Point, ...]
    laws: dict[str, Law]
    """Kind -> the law, its arms in the order of `arms`; none where the points allow none."""
    forecasts: tuple[Forecast, ...]
    missed: dict[str, float]
    """Law -> how far it was off, in nats, at the largest size when fitted without it: RMS over arms of the difference."""
    target: tuple[float, float]
    """Parameters and tokens of the forecasts."""
    notes: tuple[str, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """The baseline first."""
        return tuple(dict.fromkeys([self.baseline, *(point.arm for point in self.points)]))

    @property
    def sizes(self) -> tuple[str, ...]:
        """Smallest first."""
        return tuple(dict.fromkeys(point.size for point in sorted(self.points, key=lambda point: point.parameters)))


def study(folders: Sequence[Path], baseline: str, target: tuple[float, float], draws: int = DRAWS) -> tuple[Scaling, Results]:
    """What the sweeps in `folders` say together, and their runs. Raises ValueError where they do not belong together."""
    found = results.gather(folders)
    settings = replace(found.settings, baseline=baseline or found.settings.baseline, lengths=(), failures=())
    if others := [name for name in settings.varied if name not in _MAY_DIFFER]:
        raise ValueError(f"these sweeps vary {', '.join(others)}; give sweeps of activations, sizes and lengths alone")
    settings = replace(settings, varied=())
    records = _each_once(found.records)
    check_alike(records)
    points: list[Point] = []
    for group in _groups(records).values():
        rates = tuple(sorted({record.config["learning_rate"] for record in group}))
        own = replace(settings, rates=rates if settings.rates else (), rate_seeds=_rate_seeds(group))
        summary = summarise(Results(own, tuple(group)))
        if all(arm.activation != summary.baseline for arm in summary.arms):
            raise ValueError(f"{_size(group[0])} after {group[0].config['max_steps']} steps has no runs of the baseline")
        points += _points(summary)
    name = short(summary.baseline)
    points.sort(key=lambda point: (point.arm != name, point.parameters, point.tokens))
    scaling = Scaling(name, tuple(points), {}, (), {}, target, ())
    return forecast(scaling, draws), replace(found, records=tuple(records), settings=settings)


def check_alike(records: Sequence[Record]) -> None:
    """Raises ValueError that names the first thing, beside size, length and rate, in which two sweeps differ."""
    first = records[0]
    skipped = {*names(compare=("own", "free")), *_MAY_DIFFER}
    for record in records:
        for name in sorted(first.config.keys() | record.config.keys()):
            if name not in skipped and first.config.get(name) != record.config.get(name):
                both = f"{results.describe(first)} and {results.describe(record)} differ in {name}"
                values = f"{first.config.get(name)!r} and {record.config.get(name)!r}"
                raise ValueError(f"{both}: {values}; sizes and lengths alone may differ")
        for name in ("corpus_sha256", "val_fingerprint", "val_targets", "val_rule"):
            if first.data.get(name) != record.data.get(name):
                raise ValueError(
                    f"{results.describe(first)} and {results.describe(record)} differ in {name}: their losses do not compare; "
                    "give sweeps on the same data"
                )


def _each_once(records: Sequence[Record]) -> list[Record]:
    """The records without those that stand in two folders."""
    seen: dict[tuple[Any, ...], Record] = {}
    for record in records:
        config = {k: v for k, v in record.config.items() if k not in names(compare="free")}
        config["branch_from"] = branch_step(config.get("branch_from") or "")
        seen.setdefault((record.weights_sha256, repr(sorted(config.items()))), record)
    return list(seen.values())


def _groups(records: Sequence[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """The records of each size and length."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.config["n_embd"], record.config["max_steps"])):
        key = *(record.config[name] for name in ("n_layer", "n_head", "n_embd", "max_steps")), record.tokens_per_step
        found.setdefault(key, []).append(record)
    return found


def _rate_seeds(group: Sequence[Record]) -> tuple[int, ...]:
    """The seeds that ran each arm at all of its rates: these choose. Another size may have fewer."""
    ran: dict[tuple[str, str], dict[int, set[float]]] = {}
    for record in group:
        of = record.config["activation"], record.config.get("mlp", "plain")
        ran.setdefault(of, {}).setdefault(record.seed, set()).add(record.config["learning_rate"])
    whole = [{seed for seed, rates in by_seed.items() if rates == set().union(*by_seed.values())} for by_seed in ran.values()]
    return tuple(sorted(set.intersection(*whole)))


def _size(record: Record) -> str:
    return f"{record.config['n_layer']} x {record.config['n_embd']}"


def _points(summary: Summary) -> list[Point]:
    base = next(arm for arm in summary.arms if arm.activation == summary.baseline).records[0]

    def point(arm: Arm) -> Point:
        tokens = base.tokens_per_step * base.config["max_steps"]
        losses = dict(zip(arm.seeds, arm.losses, strict=True))
        return Point(arm.label, _size(base), base.parameters, tokens, losses, arm.rate, summary.contrast(arm))

    return [point(arm) for arm in summary.arms]


def forecast(scaling: Scaling, draws: int) -> Scaling:
    """With laws, forecasts and how far off the laws are, as far as the points allow them; `notes` say what they do not."""
    notes, laws, forecasts, missed = [], dict[str, Law](), list[Forecast](), dict[str, float]()
    chosen = _whole(scaling)
    if dropped := [arm for arm in scaling.arms if arm not in chosen.arms]:
        notes.append(f"Not in the laws, since they lack sizes or lengths: {', '.join(dropped)}.")
    largest = max(point.parameters for point in scaling.points)
    for name in KINDS:
        try:
            laws[name] = _fitted(chosen, name)
        except ValueError as error:
            notes.append(f"No law of the kind {name!r}: {error}.")
            continue
        forecasts += _forecasts(chosen, name, laws[name], draws)
        smaller = replace(chosen, points=tuple(point for point in chosen.points if point.parameters < largest))
        if len(smaller.sizes) >= LEAST:
            missed[name] = _off(chosen, _fitted(smaller, name), largest)
    if laws and (single := [size for size, seeds in _seeds(chosen).items() if len(seeds) < 2]):
        notes.append(f"One seed at {', '.join(single)}: the intervals hold nothing of its spread.")
    return replace(scaling, laws=laws, forecasts=tuple(forecasts), missed=missed, notes=tuple(notes))


def _whole(scaling: Scaling) -> Scaling:
    """The arms that have all sizes and lengths of the baseline, at the seeds that all of them have there: pairs, as far as
    there are any."""
    places = {arm: {(p.size, p.tokens) for p in scaling.points if p.arm == arm} for arm in scaling.arms}
    points = [point for point in scaling.points if places[point.arm] >= places[scaling.baseline]]
    common: dict[tuple[str, int], set[int]] = {}
    for point in points:
        common.setdefault((point.size, point.tokens), set(point.losses)).intersection_update(point.losses)

    def paired(point: Point) -> Point:
        seeds = common[point.size, point.tokens] or point.losses.keys()
        return replace(point, losses={seed: loss for seed, loss in point.losses.items() if seed in seeds})

    return replace(scaling, points=tuple(paired(point) for point in points))


def _fitted(scaling: Scaling, name: str, losses: Array | None = None, start: Law | None = None) -> Law:
    index = [scaling.arms.index(point.arm) for point in scaling.points]
    sizes, tokens = (np.array([getattr(p, what) for p in scaling.points], np.float64) for what in ("parameters", "tokens"))
    means = np.array([point.loss for point in scaling.points]) if losses is None else losses
    return fit(index, sizes, tokens, means, name, start=start)


def _forecasts(scaling: Scaling, name: str, law: Law, draws: int) -> list[Forecast]:
    """With the limits difference +- t(df) sqrt(n / (n - 1)) deviation: the deviation of the draws, n seeds at the size with
    fewest beyond one, and df the sum of n - 1 over the sizes. The root undoes that a sample of n is drawn from itself."""
    arms = range(1, len(scaling.arms))
    generator = np.random.default_rng(0)
    drawn = [
        _differences(_fitted(scaling, name, _drawn_means(scaling, generator), law), arms, scaling.target) for _ in range(draws)
    ]
    several = [len(seeds) for seeds in _seeds(scaling).values() if len(seeds) > 1]
    half = np.full(len(arms), np.nan)
    if several and draws > 1:
        from scipy import stats

        t = stats.t.ppf((1 + CONFIDENCE) / 2, sum(several) - len(several))
        half = t * np.sqrt(min(several) / (min(several) - 1)) * np.std(drawn, axis=0, ddof=1)
    found = []
    for arm, mean, width in zip(arms, _differences(law, arms, scaling.target), half, strict=True):
        known = bool(np.isfinite(width))
        low, high = (float(mean - width), float(mean + width)) if known else (None, None)
        found.append(Forecast(scaling.arms[arm], name, float(mean), low, high))
    return found


def _seeds(scaling: Scaling) -> dict[str, list[int]]:
    """Size -> the seeds that it has."""
    return {
        size: sorted({seed for point in scaling.points if point.size == size for seed in point.losses})
        for size in scaling.sizes
    }


def _drawn_means(scaling: Scaling, generator: np.random.Generator) -> Array:
    """Mean losses over seeds that are drawn with replacement: once for each size, alike for its arms and lengths."""
    drawn = {size: [int(seed) for seed in generator.choice(seeds, len(seeds))] for size, seeds in _seeds(scaling).items()}

    def mean(point: Point) -> float:
        mine = [point.losses[seed] for seed in drawn[point.size] if seed in point.losses]
        return float(np.mean(mine)) if mine else point.loss

    return np.array([mean(point) for point in scaling.points])


def _differences(law: Law, arms: Sequence[int], where: tuple[float, float]) -> Array:
    return np.array([float(law.loss(arm, *where) - law.loss(0, *where)) for arm in arms])


def _off(scaling: Scaling, law: Law, parameters: int) -> float:
    """RMS error of a law's differences at points of this size."""
    at = {(p.arm, p.tokens): p.loss for p in scaling.points if p.parameters == parameters}
    errors = [
        float(law.loss(scaling.arms.index(arm), parameters, tokens) - law.loss(0, parameters, tokens))
        - (loss - at[scaling.baseline, tokens])
        for (arm, tokens), loss in at.items()
        if arm != scaling.baseline
    ]
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.0


def to_json(scaling: Scaling) -> Mapping[str, Any]:
    """Everything in numbers."""
    points = [
        {name: value for name, value in asdict(point).items() if name != "contrast"}
        | ({"difference": asdict(point.contrast.interval), "verdict": point.contrast.verdict} if point.contrast else {})
        for point in scaling.points
    ]
    laws = {name: {key: np.asarray(value).tolist() for key, value in asdict(law).items()} for name, law in scaling.laws.items()}
    return {
        "baseline": scaling.baseline, "points": points, "laws": laws, "missed": scaling.missed, "notes": scaling.notes,
        "target": {"parameters": scaling.target[0], "tokens": scaling.target[1]},
        "forecasts": [asdict(each) | {"percent": percent(each.difference)} for each in scaling.forecasts],
    }  # fmt: skip
