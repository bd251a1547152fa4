"""One run of a sweep, in a process of its own: train it, then measure what the comparison needs of it."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import train
from comparison.measure import is_measured, measure
from config.command_line import parse
from runtime import log
from runtime.files import reason

PARENT = "COMPARE_PARENT_PID"  # the process whose end is ours too
_POLL_S = 1.0


def main(argv: list[str]) -> int:
    """train.py's exit code for the arguments `argv`; after 0 the run's folder holds measured.json too, unless it diverged."""
    sys.argv = ["train.py", *argv]  # what run.json records: the command that makes the same run
    if PARENT in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    code = train.main(argv)
    if code == 0 and os.environ.get("RANK", "0") == "0":
        try:
            finish(Path(parse(argv).out_dir))
        except ValueError as error:
            return train.fail(1, f"trained, but not measured: {error}")
        except OSError as error:
            return train.fail(1, f"trained, but not measured: {reason(error)}; the same command goes on from there")
    return code


def finish(folder: Path) -> None:
    """Measure a finished run, unless that was done or its loss is not finite. Raises ValueError, OSError."""
    losses = [row["val_loss"] for row in log.read(folder / "metrics.jsonl") if "val_loss" in row]
    if losses[-1] is not None and not is_measured(folder):
        measure(folder)


def _end_with(parent: int) -> None:
    """Stop, with a checkpoint, when the process that started us is gone: two processes must not train one run."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
