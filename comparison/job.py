"""One run of a sweep, in a process of its own: train it, then measure what the comparison needs of it."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import train
from comparison.measure import measure
from comparison.record import MEASURED
from config.command_line import parse

PARENT = "COMPARE_PARENT_PID"  # the process whose end is ours too
_POLL_S = 1.0


def main(argv: list[str]) -> int:
    """train.py's exit code for the arguments `argv`; after 0 the run's folder holds measured.json too."""
    sys.argv = ["train.py", *argv]  # what run.json records: the command that makes the same run
    if PARENT in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    code = train.main(argv)
    if code == 0 and os.environ.get("RANK", "0") == "0":
        folder = Path(parse(argv).out_dir)
        if not (folder / MEASURED).is_file():
            measure(folder)
    return code


def _end_with(parent: int) -> None:
    """Stop, with a checkpoint, when the process that started us is gone: two processes must not train one run."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
