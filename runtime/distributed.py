"""The processes of a run: who I am, which device is mine, what all of us have alike, and the few sums that we agree on."""

import contextlib
import datetime
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.distributed.nn  # now: its default arguments hold the group that is there when DDP, otherwise the first, imports it
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from runtime.hardware import pick_device


class Clock:
    """Seconds that this process spent in sums with others, the wait for the slowest of them included."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


@dataclass(frozen=True)
class Processes:
    """This process among `world_size`; one process without torchrun is rank 0 of 1 and needs no process group."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    store: Store | None = None
    """Where the processes leave word for each other, also before there is a process group; None for one process."""
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)
    _turns: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all processes, in float64, equal on every rank."""
        return self._reduce(torch.tensor(values, dtype=torch.float64))

    def sum_integers(self, values: list[int]) -> list[int]:
        """Sums over all processes modulo 2^64, as signed integers."""
        return [int(v) for v in self._reduce(torch.tensor(values, dtype=torch.int64))]

    def barrier(self) -> None:
        """Wait for every process."""
        self.sum([0.0])

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks, on every one; values are what JSON holds.

        Returns on rank 0, which may hold the store, when the others have read them: it may end at once.
        """
        if self.store is None:
            return [value]
        turn = f"turn {next(self._turns)}"
        self.store.set(f"{turn} of {self.rank}", json.dumps(value))
        if self.is_main:
            found = [json.loads(self.store.get(f"{turn} of {rank}")) for rank in range(self.world_size)]
            self.store.set(turn, json.dumps(found))
        values: list[Any] = json.loads(self.store.get(turn))
        self.store.set(f"{turn} read by {self.rank}", "")
        if self.is_main:
            self.store.wait([f"{turn} read by {rank}" for rank in range(self.world_size)])
        return values

    @contextlib.contextmanager
    def alike(self) -> Iterator[dict[str, Any]]:
        """A block that goes well on every process, or ends on every process in a ValueError that names the rank.

        The block puts into the table what must be equal on all of them, name -> value; None is not known, and fits all.
        No collective may stand inside: a process in which the block fails comes to its end at once.
        """
        facts: dict[str, Any] = {}
        failure: Exception | None = None
        try:
            yield facts
        except Exception as error:  # told to the others, who would wait, and raised again below
            failure = error
        problem = "" if failure is None else str(failure) or type(failure).__name__
        notes = self.gather([problem, facts])
        if failure:
            raise failure
        if failed := [f"rank {rank}: {problem}" for rank, (problem, _) in enumerate(notes) if problem]:
            raise ValueError("; ".join(failed[:3]))
        if differing := differences([theirs for _, theirs in notes]):
            raise ValueError(f"{'; '.join(differing[:3])}; start all ranks alike: one command, code, data and run folder")

    def _reduce(self, values: torch.Tensor) -> list[float]:
        if self.world_size > 1:
            with self.clock.running():
                values = values.to("cpu" if dist.get_backend() == "gloo" else self.device)
                dist.all_reduce(values)
        return values.tolist()


def differences(facts: list[Mapping[str, Any]]) -> list[str]:
    """Where a rank has another value than the first rank that knows one, in words."""
    differences = []
    for name in dict.fromkeys(name for table in facts for name in table):
        known = [(rank, table.get(name)) for rank, table in enumerate(facts) if table.get(name) is not None]
        first, value = known[0] if known else (0, None)
        differences += [
            f"rank {rank} has {name} {other!r}, rank {first} has {value!r}" for rank, other in known if other != value
        ]
    return differences


def join(
    device: str,
    backend: Literal["auto", "nccl", "gloo"],
    timeout_s: float,
    facts: Mapping[str, Any] | None = None,
    alone: bool = False,
) -> Processes:
    """This process as torchrun's environment describes it; joins the process group where there are several.

    With `alone` a single process gets a group of its own too.
    A collective that waits longer than `timeout_s` for a lost rank ends in an error. `facts` are what all processes must
    have alike before anything else. Raises ValueError, on all of them, where they do not, and for a device that is not
    there; and where torchrun's restarts cannot work. `leave` is the other end.
    """
    # torchrun's own store outlives an attempt, and with it the addresses of the dead (pytorch issue 135712): each attempt gets
    # a part of it. Several nodes do not agree on its number, as each counts its own restarts.
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if shared else "0"
    if attempt != "0" and os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        raise ValueError(
            "torchrun started several nodes again with the store of the attempt before, in which workers do not find each "
            "other; type TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --max-restarts N ..."
        )
    world_size, rank, local_rank = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
    timeout = datetime.timedelta(seconds=timeout_s)
    store = PrefixStore(f"attempt {attempt}", next(rendezvous("env://", timeout=timeout))[0]) if world_size > 1 else None
    processes = Processes(rank, world_size, local_rank, torch.device("cpu"), store)
    with processes.alike() as same:  # before the group: with other backends or devices it would not come about
        same.update(facts or {})
        mine = pick_device(device, local_rank)
        same["device type"] = mine.type
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    if store is not None or alone:
        if backend == "auto":
            backend = "nccl" if mine.type == "cuda" else "gloo"
        group_store = store or dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=world_size, timeout=timeout)
    return replace(processes, device=mine)


def is_main() -> bool:
    """Whether this process is the one that talks, before and after `join`."""
    return rank() == 0


def rank() -> int:
    """This process's number, before and after `join`."""
    return int(os.environ.get("RANK", "0"))


def processes_here() -> int:
    """How many processes of this run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error is that of a collective whose other end is gone or silent. gloo has no class for it, but a name."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def leave() -> None:
    """Leave the process group, if there is one. Who holds it, as a DDP model does, has to have gone before.

    The group's threads may want Python's lock to drop the last sum's tensor, and its destructor waits for them: without the
    lock where it ends here, with it where DDP's reducer is the last to hold the group, which hung 5 of 25 short runs.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


_TORCHRUN = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
