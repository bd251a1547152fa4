"""results.json, the one file of a comparison that is kept, and which of its runs may be compared.

It holds the settings and a record of every finished run, and nothing that follows from them. The runner rewrites it after each
run and skips what it finds there; a report is made from it alone. Runs may be compared that differ in activation, seed and the
fields that the comparison says it varies. Checked, not hoped: configurations field by field, and the hashes that each run took
of what it was fed and where it started.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from comparison.plan import Failure, Settings, merge, short, union
from comparison.record import DivergedError, Record, from_json, read_measured, rounded, to_json, unfinished
from config import arm
from config.schema import branch_step, names
from data.files import write_json
from runtime import checkpoint

FILE = "results.json"


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
        records, common = values["records"], dict(values.get("common", {}))
        if not set(settings) <= {f.name for f in fields(Settings)} or not isinstance(records, list):
            raise ValueError("fields that no comparison writes")
        for name in settings.get("activations", ()):
            arm.check_recorded(name)
        settings["failures"] = tuple(Failure(**failure) for failure in settings.get("failures", ()))
        if not all(isinstance(word, str) for failure in settings["failures"] for word in asdict(failure).values()):
            raise ValueError("a failure is told in words")
        records = [record | {part: shared | record[part] for part, shared in common.items()} for record in records]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a {FILE} of compare.py ({error})") from None
    return Results(Settings(**settings), tuple(from_json(record, f"{path}, run {i}") for i, record in enumerate(records)))


def save(path: Path, results: Results) -> None:
    """Atomically write settings, what all records have in common, and the rest of each record, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [to_json(record) for record in _drawn_once(results.records)]
    common = _common(records)
    own = [
        record | {part: {n: v for n, v in record[part].items() if n not in shared} for part, shared in common.items()}
        for record in records
    ]
    write_json(path, {"settings": asdict(results.settings), "common": common, "records": own}, by_line="records")


def _common(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Part of a record -> its entries that are the same in all of them: most fields of the configuration, for one."""
    first = records[0] if records else {}
    parts = ("config", "data", "documents", "provenance") if records else ()
    common = {p: {n: v for n, v in first[p].items() if all(n in r[p] and r[p][n] == v for r in records)} for p in parts}
    if records and len(common["data"]) < len(first["data"]):
        common["data"] = {}  # a report shows it in its order
    return common


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
            reasons = {run: unfinished(run) for run in runs}
            if all(reasons.values()):
                raise ValueError(
                    f"{str(folder)!r} holds neither {FILE} nor finished runs; give what compare.py or train.py made"
                )
            for run, why in reasons.items():
                try:
                    if not why:
                        records.append(read_measured(run))
                except ValueError as error:  # one damaged run does not take the others' report away
                    why = str(error)
                if why:
                    failures.append(_failure(run, why))
    return Results(replace(settings, failures=union(settings.failures, tuple(failures))), tuple(records))


def _failure(folder: Path, reason: str) -> Failure:
    """That of a run's folder; its arm is named by what can be read of it."""
    try:
        label = short(arm.of(asdict(checkpoint.read_config(folder))))
    except ValueError:
        label = folder.name
    return Failure(label, folder.name, reason)


def _drawn_once(records: Sequence[Record]) -> list[Record]:
    """The records at the digits that their use needs: nine of a document's loss, five of what is drawn alone. These are gains,
    and for one seed of each kind shapes and coefficients. They and the documents are most of a record."""
    seen: set[str] = set()
    kept = []
    for record in records:
        kind = json.dumps(
            {name: value for name, value in record.config.items() if name not in ("seed", "out_dir")}, sort_keys=True
        )
        drawn = {name: {} if kind in seen else getattr(record, name) for name in ("shapes", "coefficients")}
        drawn["gains"] = record.gains
        kept.append(replace(record, documents=rounded(record.documents, 9), **rounded(drawn, 5)))
        if record.shapes:  # measured, and learnable
            seen.add(kind)
    return kept


def check_comparable(records: Sequence[Record], varied: Collection[str]) -> None:
    """Refuse, by a ValueError that names the first difference, runs that differ in more than arm, seed and `varied`.

    Runs of one seed and one set of varied values must have been fed the same bytes. Those whose MLPs are alike must have
    started from the same weights outside the activation; values on which neither depends, such as the learning rate, count as
    none here. Runs of one seed must have computed in one precision unless that is what varies: `dtype=auto` is a different one
    on different hardware.
    """
    if not records:
        raise ValueError("no finished runs to compare")
    first = records[0]
    first_of: dict[tuple[str, ...], Record] = {}
    first_of_seed: dict[int, Record] = {}
    seen: set[tuple[Any, ...]] = set()
    groups = sorted(set(varied) & set(names(start=True)))
    for record in records:
        for name in _differing(first.config, record.config, {*names(compare=("own", "free")), *varied}):
            raise ValueError(
                f"{describe(first)} and {describe(record)} differ in {name}: {first.config.get(name)!r} and "
                f"{record.config.get(name)!r}; give it to --vary if that is what you compare"
            )
        if record.data != first.data and "data_dir" not in varied:
            raise ValueError(
                f"{describe(first)} and {describe(record)} differ in the data: {_first_difference(first.data, record.data)}"
            )
        values = tuple(repr(record.config.get(name)) for name in groups)
        identity = (record.activation, record.seed, *(repr(record.config.get(name)) for name in sorted(varied)))
        if identity in seen:
            raise ValueError(f"there are two runs of {describe(record)}; leave one out")
        seen.add(identity)
        for name, what, own in (
            ("data_hash", "the bytes they were fed", ""),
            ("init_hash", "their initial weights outside the activation", str(record.config.get("mlp"))),
        ):
            peer = first_of.setdefault((name, own, str(record.seed), *values), record)
            if getattr(peer, name) != getattr(record, name):
                raise ValueError(
                    f"{describe(peer)} and {describe(record)} differ in {what}: {name} {getattr(peer, name)[:12]} and "
                    f"{getattr(record, name)[:12]}; train them again from one commit and one data folder"
                )
        peer = first_of_seed.setdefault(record.seed, record)
        if _precision(peer) != _precision(record) and not {"dtype", "device"} & set(varied):
            raise ValueError(
                f"{describe(peer)} and {describe(record)} differ in precision: {_precision(peer)} and {_precision(record)}, "
                "which dtype=auto is on their hardware; train one of them again with the other's --dtype"
            )


def same_run(planned: dict[str, Any], finished: dict[str, Any]) -> bool:
    """Whether a finished run's configuration is the planned one, as far as computation goes."""
    if planned["seed"] != finished["seed"]:  # soon said, and true of most pairs
        return False
    return arm.of(planned) == arm.of(finished) and not changes(planned, finished)


def changes(planned: dict[str, Any], earlier: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """Fields outside arm, seed and `free` in which a plan differs from an earlier run, as far as computation goes."""
    resolved = {name for name in names(from_data=True) if not planned[name]}
    return _differing(planned, earlier, {*names(compare=("free", "own")), *free, *resolved})


def provenance_notes(records: Iterable[Record]) -> list[str]:
    """What differs between runs, or within one that was resumed, without making them unfair: code and machines."""
    records = list(records)
    provenances = [launch for record in records for launch in record.launches]
    commits = {str(p.get("commit"))[:10] for p in provenances}
    machines = {str(sorted((p.get("hardware") or {}).items())) for p in provenances}
    found = []
    if len(commits) > 1:
        found.append(f"The runs come from {len(commits)} commits: {', '.join(sorted(commits))}.")
    for record in records:
        commits_of = [str(launch.get("commit"))[:10] for launch in record.launches]
        if len(set(commits_of)) > 1:
            places = [
                f"{commit} from step {p.get('step')}" for p, commit in zip(record.launches[1:], commits_of[1:], strict=True)
            ]
            found.append(f"{describe(record)} began at commit {commits_of[0]} and was resumed: {', '.join(places)}.")
    if any(p.get("dirty") for p in provenances):
        found.append("Some runs come from a working tree with uncommitted changes.")
    if len(machines) > 1:
        found.append(
            f"The runs come from {len(machines)} different machines, versions or thread counts: their times do not compare."
        )
    return found


def describe(record: Record) -> str:
    """A run in words: activation, seed, and where it lay."""
    name = arm.join(record.config.get("mlp", "plain"), record.config["activation"])
    return f"{name} seed {record.seed} ({record.config.get('out_dir') or 'no folder'})"


def _precision(record: Record) -> str:
    """The type that a run's matrix products had, as run.json records it."""
    return str((record.provenance.get("hardware") or {}).get("dtype"))


def _differing(a: dict[str, Any], b: dict[str, Any], skipped: Collection[str]) -> list[str]:
    """Fields outside `skipped` whose values differ, by name. Of a branch the step counts, not where its trunk lay."""
    a, b = ({**values, "branch_from": branch_step(values.get("branch_from") or "")} for values in (a, b))
    return [name for name in sorted(a.keys() | b.keys()) if name not in skipped and a.get(name) != b.get(name)]


def _first_difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    name = next(name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name))
    return f"{name} {str(a.get(name))[:60]!r} and {str(b.get(name))[:60]!r}"
