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
    """Writes the numbers of rows. A disk that fails is one line: the run goes on, and metrics.jsonl decides whether it can."""

    def __init__(self, out_dir: Path, resumed_step: int, say: Callable[[str], object]) -> None:
        """What an earlier attempt wrote after `resumed_step` is hidden by TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter

        self._say = say
        self._writer: Any = SummaryWriter(str(out_dir / FOLDER), purge_step=resumed_step + 1)

    def log(self, row: dict[str, Any]) -> None:
        """Write the numbers of a row at its step."""
        if self._writer:
            try:
                for name, value in row.items():
                    if name != "step" and isinstance(value, int | float):
                        self._writer.add_scalar(name, value, row["step"])
            except OSError as error:
                self._give_up(error)

    def finish(self) -> None:
        """Write what waits."""
        if self._writer:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        self._say(f"TensorBoard gets no more rows ({error}); the run goes on, and metrics.jsonl has them all")
