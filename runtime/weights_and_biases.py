"""W&B beside a run, in a thread of its own: whatever becomes of it, the run neither ends nor waits.

metrics.jsonl holds the same numbers. The first trouble (not installed, no key, no network, a full disk) is one line; from then
on nothing more is sent.
"""

import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from config.schema import Config

THREAD = "wandb"
INIT_S, LOGIN_S, FINISH_S = 90.0, 30.0, 20.0  # torchrun and SLURM kill 30 s after they asked to stop
_ROWS = 10_000  # that wait for a slow network; a run logs about one a second at most


class Board:
    """Sends rows; `identity` is the W&B run id, kept in run.json, so that a resume continues the same one.

    W&B's own table of the run's config has the fields of `config` and the `facts`.
    """

    def __init__(
        self,
        config: Config,
        out_dir: Path,
        identity: str,
        say: Callable[[str], object],
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._settings: dict[str, Any] = {
            "project": config.wandb_project,
            "name": config.wandb_run_name or out_dir.name,
            "group": config.wandb_group or None,
            "dir": out_dir,
            "mode": config.wandb,
            "config": asdict(config) | dict(facts),
            "id": identity,
            "resume": "allow",
            "settings": {"init_timeout": INIT_S, "login_timeout": LOGIN_S},
        }
        self._say = say
        self._rows: queue.Queue[dict[str, Any] | None] = queue.Queue(_ROWS)
        self._lost = False
        self._thread = threading.Thread(target=self._send, name=THREAD, daemon=True)
        self._thread.start()

    def log(self, row: dict[str, Any]) -> None:
        """Hand over a row; never waits."""
        if self._lost:
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._give_up(f"{_ROWS} rows wait for the network")

    def finish(self, limit_s: float = FINISH_S) -> None:
        """Send what waits, for at most `limit_s` seconds."""
        if not self._lost:
            try:
                self._rows.put_nowait(None)
            except queue.Full:
                self._give_up(f"{_ROWS} rows wait for the network")
            self._thread.join(limit_s)
            if self._thread.is_alive() and not self._lost:
                self._give_up(f"it did not finish within {limit_s:g} s")

    def _send(self) -> None:
        doing = "import"
        try:
            import wandb

            doing = "init"
            run = wandb.init(**self._settings)
            while (row := self._rows.get()) is not None:
                doing = "log"
                run.log(row, step=row["step"])
            doing = "finish"
            run.finish()
        except (Exception, SystemExit) as error:  # it is a guest: any error of it is said, and the run goes on
            first = str(error).strip().splitlines()
            self._give_up(f"{doing}: {type(error).__name__}{f': {first[0]}' if first else ''}")

    def _give_up(self, why: str) -> None:
        self._lost = True
        self._say(f"W&B gets no more rows ({why}); the run goes on, and metrics.jsonl has them all")


def hangs() -> bool:
    """Whether a thread of W&B is left behind: its package then waits for the network at the end of the process."""
    return any(thread.name == THREAD for thread in threading.enumerate())


def leave(code: int) -> NoReturn:
    """End this process with an exit code, and do not wait for the network."""
    if hangs():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
