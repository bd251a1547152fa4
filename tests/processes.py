"""Real processes of train.py, sample.py, compare.py and data.prepare, started in a fraction of a second.

Each is forked from a server that has imported the program and has computed nothing, with a command line, an environment, output
and an end of its own. `inject` runs in it before the program does: it is how a fault gets inside without a hook in the product.
"""

import importlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from config.schema import Config
from tests.runs import LIMIT_S, PRESET, arguments, forkserver, free_port, rows

Inject = Callable[[], object]


@dataclass
class Child:
    """One process; `code` and `said` once it has ended."""

    program: str
    argv: Sequence[str]
    log: Path
    """What it says, to stdout and stderr together."""
    inject: Inject | None = None
    environment: dict[str, str] = field(default_factory=dict)
    memory_bytes: int = 0
    """Most address space it may have beyond what a small run needs; 0: no limit."""

    def __post_init__(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        self.process = forkserver().Process(
            target=_run,
            args=(self.program, list(self.argv), str(self.log), self.environment, self.inject, self.memory_bytes),
            daemon=True,
        )
        self.process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None, "it has started"
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.is_alive()

    @property
    def said(self) -> str:
        """All that it said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it is still there."""
        if self.alive:
            os.kill(self.pid, number)

    def finish(self, limit_s: float = LIMIT_S) -> int:
        """Wait for its end; the exit code, minus the signal's number where one killed it."""
        self.process.join(limit_s)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"{self.program} did not end within {limit_s} s; it said: {self.said[-500:]}")
        return self.process.exitcode

    def until(self, condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
        """Wait for something that it does; NotSurvivedError where it ends before."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self.alive, f"{self.program} ended before {what}: {self.said[-500:]}"
            assert time.monotonic() < deadline, f"{self.program}: no {what} within {limit_s} s"
            time.sleep(0.002)


def trainers(config: Config, processes: int = 1, inject: Inject | None = None, memory_bytes: int = 0) -> list[Child]:
    """train.py with this config: one process, or several with the environment that torchrun gives; the fault is rank 0's."""
    argv, log = [PRESET, *arguments(config)], f"{config.out_dir}.log"
    if processes == 1:
        return [Child("train", argv, Path(log), inject, memory_bytes=memory_bytes)]
    port = free_port()
    return [
        Child("train", argv, Path(f"{log}.{rank}"), None if rank else inject, worker(rank, processes, port))
        for rank in range(processes)
    ]


def trainer(config: Config, inject: Inject | None = None, memory_bytes: int = 0) -> Child:
    """train.py with this config in one process."""
    return trainers(config, 1, inject, memory_bytes)[0]


def trained(config: Config, processes: int = 1, inject: Inject | None = None) -> Config:
    """train.py with this config to its end, which is a good one; the config."""
    for child in trainers(config, processes, inject):
        ends(child)
    return config


def ends(child: Child, code: int = 0) -> str:
    """What a process said that ended with this exit code and without a traceback."""
    found, said = child.finish(), child.said
    assert "Traceback" not in said, f"a traceback, exit code {found}: {said[-600:]}"
    assert found == code, f"exit code {found}, not {code}: {said[-600:]}"
    return said


def worker(rank: int, processes: int, port: int) -> dict[str, str]:
    """torchrun's environment for a rank."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": socket.gethostbyname("localhost"), "MASTER_PORT": str(port),
    }  # fmt: skip


def reached(config: Config, step: int) -> Callable[[], bool]:
    """Whether metrics.jsonl has a row of that step or a later one."""
    return lambda: any(row["step"] >= step for row in rows(config))


def one_line(child: Child, code: int, *needed: str) -> str:
    """The line with which a process ended: its exit code is `code`, it says all that is needed, and no traceback."""
    lines = ends(child, code).strip().splitlines()
    assert lines, "it said nothing"
    for word in needed:
        assert word in lines[-1], f"{word!r} is not in its last line: {lines[-1][:600]}"
    return lines[-1]


def _run(
    program: str, argv: list[str], log: str, environment: dict[str, str], inject: Inject | None, memory_bytes: int
) -> None:
    """In the child: be the program."""
    os.environ.update(environment)
    with open(log, "ab", buffering=0) as output:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = [f"{program}.py", *argv]
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
    torch.set_num_threads(1)  # two threads of OpenMP on a busy core wait for each other
    module = importlib.import_module(program)
    if memory_bytes:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory_bytes, resource.RLIM_INFINITY))
    if inject:
        inject()
    sys.exit(module.main(argv))
