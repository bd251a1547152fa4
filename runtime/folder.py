"""A run's folder: which checkpoint in it the run goes on from, and that no other process writes in it meanwhile."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from config.schema import Config
from data.lock import locked
from runtime import checkpoint, log

LOCK = ".lock"


def find_checkpoint(config: Config) -> Path | None:
    """The checkpoint in `out_dir` to go on from, or None for a new run. Raises ValueError for what `resume` does not allow."""
    out_dir = Path(config.out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"out_dir {config.out_dir!r} is a file; give a folder")
    checkpoint.refuse_links(out_dir)
    checkpoint.refuse_code(config, out_dir)
    if config.resume == "never" and out_dir.is_dir() and any(path.name != LOCK for path in out_dir.iterdir()):
        raise ValueError(f"out_dir {config.out_dir!r} is not empty and resume is never; give another or --resume auto")
    found = checkpoint.checkpoints(out_dir)
    if config.resume == "must" and not found:
        raise ValueError(f"out_dir {config.out_dir!r} holds no checkpoint and resume is must; give a run's or --resume auto")
    if found:
        return found[-1]
    if log.read(out_dir / "metrics.jsonl"):  # the run ended before its first checkpoint: its rows are still its own
        if not (out_dir / "config.json").is_file():
            raise ValueError(
                f"{out_dir} holds the rows of a run whose config.json is gone; remove its metrics.jsonl, "
                "or start another run: --out_dir ANOTHER"
            )
        checkpoint.check_resumable(config, checkpoint.read_config(out_dir), out_dir)
    return None


def take_folder(config: Config, resources: contextlib.ExitStack) -> Callable[[], object]:
    """Take `out_dir` for this run alone, until `resources` close; what checks that it still is the run's alone.

    Raises ValueError where another run has it.
    """
    found, out_dir = find_checkpoint(config), Path(config.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    check = resources.enter_context(locked(out_dir, LOCK))
    log.read(out_dir / "metrics.jsonl")  # what is not ours to go on from is said now
    checkpoint.sweep(out_dir)
    if checkpoint.checkpoints(out_dir)[-1:] != ([found] if found else []):
        raise ValueError(f"another process has just written a checkpoint into {out_dir}; type the same command again")
    return check
