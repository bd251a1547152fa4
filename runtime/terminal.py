"""The terminal, or the file that stands for it: a run goes on without it."""

import os
import sys
from typing import Any

from tqdm import tqdm

from runtime import distributed


def say(*lines: str, everywhere: bool = False) -> None:
    """Write lines that do not tear the progress bar; rank 0 alone does, unless `everywhere`."""
    if everywhere or distributed.is_main():
        for line in lines:
            tqdm.write(line, file=Terminal())


def close_stdout() -> None:
    """Where a reader (head, less) has closed the pipe and so has had enough: what is left in the buffer goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminal:
    """stderr as it is now. What it cannot take (a closed terminal, a full disk under a log file) is dropped.

    A training run must not end because nobody can read its lines: metrics.jsonl holds the numbers.
    """

    def __init__(self) -> None:
        self._file = sys.stderr

    def write(self, text: str) -> int:
        """Write, if that can be done."""
        try:
            return self._file.write(text)
        except OSError:
            return 0

    def flush(self) -> None:
        """Flush, if that can be done."""
        try:
            self._file.flush()
        except OSError:
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
