"""The processes of a run: who I am, which device is mine, and the few sums that all of us agree on."""

import datetime
import os
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.distributed.nn  # now: its default arguments hold the group that is there when DDP, otherwise the first, imports it
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from runtime.hardware import pick_device


@dataclass(frozen=True)
class Processes:
    """This process among `world_size`; one process without torchrun is rank 0 of 1 and needs no process group."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

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

    def _reduce(self, values: torch.Tensor) -> list[float]:
        if self.world_size > 1:
            values = values.to("cpu" if dist.get_backend() == "gloo" else self.device)
            dist.all_reduce(values)
        return values.tolist()


def join(device: str, backend: Literal["auto", "nccl", "gloo"], timeout_s: float) -> Processes:
    """This process as torchrun's environment describes it; joins the process group where there are several.

    A collective that waits longer than `timeout_s` for a lost rank ends in an error. Raises ValueError for a device
    that is not there, or where torchrun's restarts cannot work. `leave` is the other end.
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
    pick_device(device, processes_here() - 1)  # too few devices is an error on rank 0 as well
    mine = pick_device(device, local_rank)
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    if world_size > 1:
        if backend == "auto":
            backend = "nccl" if mine.type == "cuda" else "gloo"
        timeout = datetime.timedelta(seconds=timeout_s)
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        part = PrefixStore(f"attempt {attempt}", store)
        dist.init_process_group(backend, store=part, rank=rank, world_size=world_size, timeout=timeout)
    return Processes(rank, world_size, local_rank, mine)


def is_main() -> bool:
    """Whether this process is the one that talks, before and after `join`."""
    return os.environ.get("RANK", "0") == "0"


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
