"""A branch: a run that goes on from a checkpoint of another one, its trunk, in its own folder and under its own schedule.

One long run at a constant rate and a short decay from each of several of its checkpoints give the final losses of as many
lengths (Haegele et al. 2024, arXiv 2405.18392). Weights, moments, the place in the data and the rows of metrics.jsonl are the
trunk's, so that a branch of a constant run is to the bit the uninterrupted wsd run. It needs its trunk no more once it has a
checkpoint of its own.
"""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.foreign import read_object
from config.schema import Config, branch_step, names
from data.files import write_text
from runtime import checkpoint, log
from runtime.progress import Progress


def find(config: Config) -> Path | None:
    """The checkpoint folder that `branch_from` names; None where the run is no branch. Raises ValueError."""
    if not config.branch_from:
        return None
    run, _, _ = config.branch_from.rpartition("@")
    if Path(run).resolve() == Path(config.out_dir).resolve():
        raise ValueError(f"branch_from={config.branch_from} is the run's own out_dir; give the branch another --out_dir")
    found = checkpoint.find(run, str(branch_step(config.branch_from)))
    if checkpoint.step_of(found) != branch_step(config.branch_from):
        raise ValueError(f"branch_from={config.branch_from}: {run} is a checkpoint; give the folder of its run before the @")
    return found


def check(config: Config, trunk: Path) -> Config:
    """The branch's config, with what it takes over. Raises ValueError where more than the schedule differs from the trunk's."""
    earlier = checkpoint.read_config(trunk)
    config = replace(config, init_from=config.init_from or earlier.init_from)
    fixed = [name for name in names(resume="fixed") if name not in names(schedule=True)]
    if differing := [name for name in fixed if getattr(earlier, name) != getattr(config, name)]:
        changes = ", ".join(f"{name} was {getattr(earlier, name)!r} and is {getattr(config, name)!r}" for name in differing)
        back = " ".join(f"--{name} {shlex.quote(str(getattr(earlier, name)))}" for name in differing)
        raise ValueError(f"cannot branch from {trunk}: {changes}; only the schedule may differ: type {back}")
    return config


def begin(progress: Progress) -> None:
    """What a trunk's progress becomes in a branch, whose folder holds none of the trunk's checkpoints."""
    progress.best_loss, progress.best_step, progress.evaluation_due = math.inf, -1, False


def take_over(out_dir: Path, trunk: Path) -> dict[str, Any]:
    """Copy the trunk's rows up to the branch into metrics.jsonl; what run.json says of the trunk.

    A trunk that began from other weights than its seed's (init_from) has their hashes in its run.json.
    """
    run, step = trunk.parent.parent, checkpoint.step_of(trunk)
    assert step is not None, "a trunk is found by its step"
    rows = [row for row in log.read(run / "metrics.jsonl") if row["step"] <= step]
    write_text(out_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    first = read_object(run / "run.json") if (run / "run.json").is_file() else {}
    config = checkpoint.read_config(trunk)
    facts: dict[str, Any] = {"branched_from": {"run": str(run), "step": step, "schedule": config.values(schedule=True)}}
    if config.init_from:
        facts |= {name: first[name] for name in ("init_hash", "activation_init_hash") if name in first}
    return facts
