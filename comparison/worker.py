"""A process that trains runs of a sweep one after another, so that imports and compilation are paid once.

comparison/launch.py starts it (python -m comparison.worker) and writes an order, one line of JSON, on its standard input:

    {"arguments": train.py's, "log": the file of what the run says, "forgets_graphs": whether compiled graphs go first}

When a run has ended well the worker puts the process back as it was and answers with one line on its standard output. After
any other run, and where something stays that it cannot put back, it ends with the run's exit code: the launcher reads that
and starts another worker. So a crash, a signal or a lack of memory takes one run down, as in a process of its own.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from comparison import run
from comparison.launch import PARENT
from config.command_line import parse
from data.files import append
from runtime import log, weights_and_biases
from runtime.hardware import forget_peak_memory
from runtime.shared_state import SharedState

_GRAPHS = 64  # of one function: more than training and evaluation of all shapes that launch.py lets a worker keep


def main() -> int:
    """The exit code of the last run: 0 once there are no more orders."""
    orders, answers = own_streams()
    if PARENT in os.environ:
        threading.Thread(target=run.end_with, args=(int(os.environ.pop(PARENT)),), daemon=True).start()
    state, knows_peak = SharedState(), True
    for order in read(orders):
        speak_to(Path(order["log"]))
        if order["forgets_graphs"]:
            torch.compiler.reset()
        if "torch._dynamo" in sys.modules:  # the first run, which imports it, is within the default limit
            torch._dynamo.config.recompile_limit = _GRAPHS
        code = run.main(order["arguments"])
        if code:
            return code
        if not knows_peak:
            log.update_record(Path(parse(order["arguments"]).out_dir), {"peak_memory_bytes": None})
        if "wandb" in sys.modules:  # it keeps threads, a service and handlers of its own
            return 0
        state.restore()
        knows_peak = forget_peak_memory()
        answers.write(b"done\n")
        answers.flush()
    return 0


def own_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output as they are now; what else reads and writes there gets nothing, and standard error."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return orders, answers


def read(orders: BinaryIO) -> Iterator[dict[str, Any]]:
    """Every order, until the launcher closes the pipe or is gone."""
    for line in orders:
        yield json.loads(line)


def speak_to(path: Path) -> None:
    """From now on all that this process says, Python's or not, goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with append(path) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


if __name__ == "__main__":
    weights_and_biases.leave(main())
