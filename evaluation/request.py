"""Which tasks are asked for, and where their items are: the options that evaluate.py and compare.py share."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from config.command_line import Once, whole


@dataclass(frozen=True)
class Request:
    """Tasks by name. Raises ValueError where options contradict each other, or name nothing."""

    names: tuple[str, ...]
    folder: Path | None = None
    """With their items; None: the hub."""
    limit: int = 0
    """The most items of a task; 0: all."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"--task_limit {self.limit} is no number of items; give at least 1, or leave it out for all")
        if (self.folder or self.limit) and not self.names:
            raise ValueError("--task_data and --task_limit are about tasks, and none is named; add --tasks blimp")
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(f"--tasks names {twice[0]} twice; name each once")
        if self.folder and not self.folder.is_dir():
            raise ValueError(f"--task_data {self.folder} is not a folder")
        if self.names and not find_spec("lm_eval"):
            raise ValueError("--tasks needs lm_eval, which is not installed; type: pip install lm_eval")

    def prepare(self) -> list[Any]:
        """The tasks as requests, once for all models: `harness.Prepared` each. Raises ValueError."""
        return self._prepare(self.limit)

    def check(self) -> None:
        """Raises ValueError where a task or its items are not there; it takes one item of each set."""
        self._prepare(1)

    def _prepare(self, limit: int) -> list[Any]:
        if not self.names:
            return []
        from evaluation import harness

        return [harness.prepare(name, self.folder, limit) for name in self.names]


def add_options(add: Any) -> None:
    """--tasks, --task_data and --task_limit, by the `add_argument` of a parser."""
    names = "blimp lambada hellaswag wikitext, or a name of lm_eval"
    add("--tasks", action="extend", nargs="+", default=[], metavar="NAME", help=f"score these tasks: {names}")
    add("--task_data", action=Once, type=Path, metavar="DIR", help="the folder that holds the items of the tasks (the hub)")
    add("--task_limit", action=Once, type=whole, default=0, metavar="N", help="at most N items of a task, evenly spread (all)")
