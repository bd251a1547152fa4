"""What a run records: metrics.jsonl (W&B and TensorBoard get the same numbers) and run.json.

metrics.jsonl is appended, one object a line. A resume cuts it back to the checkpoint's step, a torn last line included,
so that it has neither gaps nor repeated steps.
"""

import hashlib
import json
import logging
import math
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from config.foreign import read_object
from config.schema import Config
from data.files import write_json, write_text
from runtime import tensorboard
from runtime.weights_and_biases import Board

logger = logging.getLogger("train")


class Metrics:
    """Appends rows to out_dir/metrics.jsonl; `sync` before a checkpoint makes them last as long as it does."""

    def __init__(
        self,
        out_dir: Path,
        config: Config,
        resumed_step: int,
        evaluates_again: bool = False,
        check: Callable[[], object] = lambda: None,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Drops rows above `resumed_step`, then appends. Starts W&B, which is given the `facts` too, and TensorBoard.

        A run that begins writes its row of step 0 itself: where `resumed_step` is 0, those of an earlier attempt go too.
        So does an evaluation of `resumed_step` where the run `evaluates_again`. `check` is called before each write, and raises
        OSError where the folder is no longer this run's alone.
        """
        self._check = check
        self.path = out_dir / "metrics.jsonl"
        cut(self.path, resumed_step or -1, evaluates_again)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._boards: list[Board | tensorboard.Scalars] = []
        if config.wandb != "disabled":
            self._boards.append(Board(config, out_dir, wandb_identity(out_dir), logger.warning, facts))
        if config.tensorboard:
            self._boards.append(tensorboard.Scalars(out_dir, resumed_step, logger.warning))

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; its "step" orders it. Non-finite numbers become null, which JSON has."""
        row = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
        self._check()
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for board in self._boards:
            board.log(grouped(row))

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        self._check()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, W&B and TensorBoard."""
        for board in self._boards:
            board.finish()
        self._file.close()


def grouped(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl with its names in the groups train/, val/ and activations/, by which the boards arrange charts."""
    group = "val" if "val_loss" in row else "train" if "train_loss" in row else "activations"
    names = {name: name if name == "step" else f"{group}/{name.removeprefix(f'{group}_')}" for name in row}
    return {names[name]: value for name, value in row.items()}


def read(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics.jsonl; a torn line at the end is left out. Raises ValueError naming a line that is no row."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_row(path, number, line) for number, line in enumerate(lines[:-1], 1) if line]  # the rest is torn or empty


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError(f"{path}: line {number} is no row of metrics; repair or remove it")
    return row


def cut(path: Path, step: int, without_evaluation: bool = False) -> None:
    """Atomically keep the rows of `path` up to and including `step`; the evaluation of `step` goes `without_evaluation`."""
    if path.exists():
        rows = [row for row in read(path) if row["step"] <= step]
        kept = [row for row in rows if not (without_evaluation and row["step"] == step and "val_loss" in row)]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def config_hash(config: Config) -> str:
    """SHA-256 of all settings that change what a run computes: equal for runs that should be equal."""
    values = config.values(compare=("same", "own"))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def record_launch(out_dir: Path, step: int, facts: dict[str, Any], resumed: bool) -> None:
    """Write out_dir/run.json: what ran, on what, from which commit. A resume keeps the first launch and lists itself."""
    launch = provenance()
    path = out_dir / "run.json"
    if not resumed or not path.is_file():
        write_json(path, launch | facts | {"resumed": []})
        return
    first = read_object(path)
    launches = [*first.get("resumed", []), {"step": step} | launch | {"hardware": facts["hardware"]}]
    write_json(path, first | {"resumed": launches})


def update_record(out_dir: Path, facts: dict[str, Any]) -> None:
    """Add `facts` to out_dir/run.json."""
    path = out_dir / "run.json"
    write_json(path, read_object(path) | facts)


def provenance() -> dict[str, Any]:
    """The commit, whether the tree differs from it, and the command line. Commit is None outside a git checkout."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=source, capture_output=True, text=True, check=False)
        except FileNotFoundError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status), "command": sys.argv}


def software() -> dict[str, str | None]:
    """What computes: the commit (None outside a git checkout), the source files, and torch."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for pattern in ("*.py", "activations/**/*.py", "config/*.py", "data/*.py", "runtime/*.py"):
        for path in sorted(root.glob(pattern)):
            digest.update(f"{path.relative_to(root)} ".encode() + path.read_bytes())
    return {
        "code commit": provenance()["commit"],
        "source files": digest.hexdigest()[:16],
        "torch version": torch.__version__,
    }


def wandb_identity(out_dir: Path) -> str:
    """The W&B id of the run in this folder, drawn once and kept in run.json: a folder that is moved keeps it."""
    record = read_object(out_dir / "run.json") if (out_dir / "run.json").is_file() else {}
    identity = record.get("wandb_id")
    if not isinstance(identity, str) or not re.fullmatch("[0-9a-f]{16}", identity):
        identity = secrets.token_hex(8)
        write_json(out_dir / "run.json", record | {"wandb_id": identity})
    return identity
