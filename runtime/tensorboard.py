"""TensorBoard beside a run, by choice: the numbers of metrics.jsonl as scalars in out_dir/tensorboard."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


def check() -> None:
    """Raises ValueError where the package tensorboard is not installed."""
    if not importlib.util.find_spec("tensorboard"):
        raise ValueError(
            "tensorboard=True needs the package tensorboard, which is not installed; "
            "type: pip install tensorboard, or leave --tensorboard out"
        )


class Scalars:
    """Writes the numbers of rows. Any trouble is one line, and the run goes on: metrics.jsonl has the same numbers."""

    def __init__(self, out_dir: Path, resumed_step: int, say: Callable[[str], object]) -> None:
        """What an earlier attempt wrote after `resumed_step` is hidden by TensorBoard; all of it where the run begins anew."""
        self._say = say
        self._writer: Any = None

        def open_writer() -> None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(out_dir / FOLDER), purge_step=resumed_step + 1 if resumed_step else 0)

        self._try("init", open_writer)

    def log(self, row: dict[str, Any]) -> None:
        """Write the numbers of a row at its step."""
        if self._writer:
            self._try("log", lambda: self._add(row))

    def finish(self) -> None:
        """Write what waits."""
        if self._writer:
            self._try("finish", self._writer.close)

    def _add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])

    def _try(self, doing: str, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # it is a guest, as W&B is: any error of it is said, and the run goes on
            self._writer = None
            first = str(error).strip().splitlines()
            why = f"{doing}: {type(error).__name__}{f': {first[0]}' if first else ''}"
            self._say(f"TensorBoard gets no more rows ({why}); the run goes on, and metrics.jsonl has them all")
