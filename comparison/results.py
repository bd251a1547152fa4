"""results.json: the settings of a comparison, its verdicts, and a record of every finished run; the one file that is kept.

The runner rewrites it after each run and skips what it finds there; a report is made from it alone.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from activations import registry
from comparison.measure import read_measured
from comparison.record import Record, from_json, is_finished, to_json
from runtime.files import write_text

FILE = "results.json"


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
    failures: tuple[str, ...] = ()
    """Runs that ended without a result, and why."""

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
            registry.check(spec)
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
    """Results of all `folders`: each a run's, a sweep's with a results.json, or one that holds finished runs' folders.

    Raises ValueError for a folder that is none of these.
    """
    settings, records = Settings(), list[Record]()
    for folder in folders:
        if (folder / FILE).is_file():
            found = load(folder / FILE)
            settings = merge(settings, found.settings)
            records += found.records
        elif (folder / "metrics.jsonl").is_file():
            records.append(read_measured(folder))
        else:
            runs = [path.parent for path in sorted(folder.glob("*/metrics.jsonl")) if is_finished(path.parent)]
            if not runs:
                raise ValueError(
                    f"{str(folder)!r} holds neither {FILE} nor finished runs; give what compare.py or train.py made"
                )
            records += [read_measured(run) for run in runs]
    return Results(settings, tuple(records))


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


def _union(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(a + b))
