"""results.json: the settings of a comparison, its verdicts, and a record of every finished run; the one file that is kept.

The runner rewrites it after each run and skips what it finds there; a report is made from it alone.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from activations import registry
from comparison.measure import read_measured
from comparison.record import DivergedError, Record, from_json, short, to_json, unfinished
from runtime import checkpoint
from runtime.files import write_text

FILE = "results.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """A run without a result: a row of the report."""

    arm: str
    """The label of its arm."""
    run: str
    """Its name."""
    reason: str
    """What it said, or what is wrong with its folder."""


@dataclass(frozen=True)
class Settings:
    """What a comparison compares."""

    activations: tuple[str, ...] = ()
    """Spec strings in the order of the report; others follow as they come."""
    baseline: str = ""
    """Spec string that the others are compared with; empty: the first."""
    varied: tuple[str, ...] = ()
    """Configuration fields that differ on purpose, besides activation and seed."""
    rates: tuple[float, ...] = ()
    """Learning rates among which each activation takes its best; empty: all runs have one."""
    rate_seeds: tuple[int, ...] = ()
    """Seeds that choose the learning rate; empty: all."""
    commands: tuple[str, ...] = ()
    """Command lines that made the runs."""
    failures: tuple[Failure, ...] = ()
    """Runs that ended without a result."""

    @property
    def free(self) -> tuple[str, ...]:
        """All fields that may differ between runs."""
        return self.varied + (("learning_rate", "min_lr") if self.rates else ())


@dataclass(frozen=True)
class Results:
    """Settings and finished runs."""

    settings: Settings
    records: tuple[Record, ...] = ()


def load(path: Path) -> Results:
    """A results.json, validated as the data it is. Raises ValueError that begins with the path."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values["settings"].items()}
        records = values["records"]
        if not set(settings) <= {f.name for f in fields(Settings)} or not isinstance(records, list):
            raise ValueError("fields that no comparison writes")
        for spec in settings.get("activations", ()):
            registry.check_recorded(spec)
        settings["failures"] = tuple(Failure(**failure) for failure in settings.get("failures", ()))
        if not all(isinstance(word, str) for failure in settings["failures"] for word in asdict(failure).values()):
            raise ValueError("a failure is told in words")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a {FILE} of compare.py ({error})") from None
    return Results(Settings(**settings), tuple(from_json(record, f"{path}, run {i}") for i, record in enumerate(records)))


def save(path: Path, results: Results, summary: dict[str, Any] | None = None) -> None:
    """Atomically write settings, `summary` (the verdicts) and records, one a line, so that versions differ by lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(to_json(record)) for record in _drawn_once(results.records))
    head = {"settings": asdict(results.settings), "summary": summary or {}}
    write_text(path, json.dumps(head, indent=1)[:-2] + f',\n "records": [\n{lines}\n]\n}}\n')


def gather(folders: Sequence[Path]) -> Results:
    """Results of all `folders`: each a run's, a sweep's with a results.json, or one that holds runs' folders.

    A run that diverged is a failure, not a record, and so is one in a folder of runs that did not finish.
    Raises ValueError for a folder that is none of these.
    """
    settings, records, failures = Settings(), list[Record](), list[Failure]()
    for folder in folders:
        if (folder / FILE).is_file():
            found = load(folder / FILE)
            settings = merge(settings, found.settings)
            records += found.records
        elif (folder / "metrics.jsonl").is_file():
            try:
                records.append(read_measured(folder))
            except DivergedError as error:
                failures.append(_failure(folder, str(error)))
        else:
            runs = [path.parent for path in sorted(folder.glob("*/metrics.jsonl"))]
            told = {run: unfinished(run) for run in runs}
            if all(told.values()):
                raise ValueError(
                    f"{str(folder)!r} holds neither {FILE} nor finished runs; give what compare.py or train.py made"
                )
            for run, why in told.items():
                try:
                    if not why:
                        records.append(read_measured(run))
                except ValueError as error:  # one damaged run does not take the others' report away
                    why = str(error)
                if why:
                    failures.append(_failure(run, why))
    return Results(replace(settings, failures=_union(settings.failures, tuple(failures))), tuple(records))


def _failure(folder: Path, reason: str) -> Failure:
    """That of a run's folder; its arm is named by what can be read of it."""
    try:
        arm = short(checkpoint.read_config(folder).activation)
    except ValueError:
        arm = folder.name
    return Failure(arm, folder.name, reason)


def merge(a: Settings, b: Settings) -> Settings:
    """Both settings: the order and the baseline of `a` first, then what `b` adds."""
    return replace(
        a,
        activations=_union(a.activations, b.activations),
        baseline=a.baseline or b.baseline,
        varied=_union(a.varied, b.varied),
        rates=tuple(sorted({*a.rates, *b.rates})),
        # Only seeds that both sweeps ran at all of their rates say which rate is best.
        rate_seeds=tuple(sorted({*a.rate_seeds} & {*b.rate_seeds})) or a.rate_seeds or b.rate_seeds,
        commands=_union(a.commands, b.commands),
        failures=_union(a.failures, b.failures),
    )


def _drawn_once(records: Sequence[Record]) -> list[Record]:
    """The records, with shapes for one seed of each kind alone: they are most of a record, and a report draws one seed."""
    seen: set[str] = set()
    kept = []
    for record in records:
        kind = json.dumps(
            {name: value for name, value in record.config.items() if name not in ("seed", "out_dir")}, sort_keys=True
        )
        kept.append(replace(record, shapes={}) if kind in seen else record)
        if record.shapes:
            seen.add(kind)
    return kept


def _union(a: tuple[T, ...], b: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(a + b))
