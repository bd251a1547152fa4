"""The parts of a run, which `runtime.setup.set_up` puts together, and what a training step asks of them."""

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import activations
from activations import telemetry
from config.schema import Config
from data.batches import Batch, Batches
from model import GPT
from runtime import log, sharding
from runtime.dataset import Dataset
from runtime.distributed import Processes
from runtime.hardware import autocast, describe, why_not_compile
from runtime.progress import Progress
from runtime.watch import Watch


def nothing() -> None:
    """What a rank that writes nothing has to check."""


@dataclass
class Run:
    """The parts of a run. `gpt` owns the weights; `compiled` computes with them, and `model` adds the gradient exchange."""

    config: Config
    """Resolved: it names the tokenizer and the vocabulary."""
    processes: Processes
    dtype: torch.dtype
    gpt: GPT
    compiled: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    dataset: Dataset
    batches: Batches
    watch: Watch
    check_folder: Callable[[], object] = nothing
    """Raises OSError where another process has taken the run's folder meanwhile; rank 0's alone."""
    progress: Progress = field(default_factory=Progress)
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def out_dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.out_dir)

    @property
    def share(self) -> npt.NDArray[np.int64]:
        """Which sequences of every global batch this process computes, micro-batch after micro-batch."""
        per_pass = self.processes.world_size * self.config.micro_batch_size
        sequences = np.arange(self.config.global_batch_size).reshape(-1, per_pass)  # (micro-batches, over all processes)
        first = self.processes.rank * self.config.micro_batch_size
        return sequences[:, first : first + self.config.micro_batch_size].reshape(-1)

    def read_batch(self, step: int) -> Batch:
        """This process's share of the global batch that follows `step` updates."""
        return self.batches.read(step, self.share)

    def to_device(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """(inputs, targets) of each micro-batch, int64 (micro_batch_size, block_size), on the device."""
        device, size = self.processes.device, self.config.micro_batch_size
        # Contiguous: the strides of a window's two views would compile the model once more than warm_up's.
        both = [torch.from_numpy(np.ascontiguousarray(array)) for array in (batch.inputs, batch.targets)]
        if device.type == "cuda":
            both = [tensor.pin_memory().to(device, non_blocking=True) for tensor in both]
        else:
            both = [tensor.to(device) for tensor in both]
        return list(zip(both[0].split(size), both[1].split(size), strict=True))

    def seed_dropout(self, step: int) -> None:
        """The global generator as a function of (seed, step, rank); after set-up nothing but dropout draws from it."""
        if self.config.dropout:
            key = hashlib.blake2b(f"{self.config.seed} {step} {self.processes.rank}".encode(), digest_size=7).digest()
            torch.manual_seed(int.from_bytes(key))

    def warm_up(self) -> None:
        """One pass whose gradients are thrown away: it compiles, and makes DDP sort its buckets now, not after the first step.

        Sorting changes the order of the gradients' sums over three or more processes, so a resumed run, whose first step
        is another one, would otherwise differ in the last bit.
        """
        inputs, targets = (
            torch.zeros(self.config.micro_batch_size, self.config.block_size, dtype=torch.int64) for _ in range(2)
        )
        with autocast(self.processes.device, self.dtype):
            loss = self.model(inputs.to(self.processes.device), targets.to(self.processes.device))
        loss.backward()
        self.optimizer.zero_grad(set_to_none=True)

    def observe(self, batch: Batch) -> dict[str, Any]:
        """Telemetry of every activation on this process's first micro-batch, by the uncompiled model."""
        self.seed_dropout(self.progress.step)  # or the first row would depend on what this process did before
        inputs, _ = self.to_device(batch)[0]
        with torch.no_grad(), autocast(self.processes.device, self.dtype):
            return telemetry.observe(self.gpt, inputs)

    def stop_exchange(self) -> None:
        """Let go of DDP, and so of the process group, before the group ends: see distributed.leave."""
        self.model = self.compiled

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the model: then all of them compute, gather and save together."""
        return self.config.parallelism == "fsdp"

    def weights(self) -> dict[str, Tensor]:
        """The weights under GPT-2's names. Of a sharded model on rank 0's CPU; nothing on the others, which take part."""
        if not self.is_sharded:
            return self.gpt.gpt2_state_dict()
        # One after another: no process holds more than one full tensor that it does not keep.
        tensors = self.gpt.gpt2_tensors(sharding.whole)
        return {name: tensor.cpu() for name, tensor in tensors if self.processes.is_main}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights."""
        optimizer = self.optimizer.state_dict()
        return {
            "optimizer": sharding.gathered(optimizer, self.processes.is_main) if self.is_sharded else optimizer,
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "data_fingerprint": self.dataset.fingerprint,
            "data_checksums": self.dataset.checksums,
            "environment": self.environment(),
        }

    def environment(self) -> dict[str, Any]:
        """What a run's last bits depend on beside its config and data; a checkpoint records it, a resume compares it."""
        described = describe(self.processes.device)
        return {name: described[name] for name in ("device", "threads", "torch", "cuda")} | {
            "dtype": str(self.dtype),
            "compiled": self.config.compile and not why_not_compile(self.processes.device),
            "processes": self.processes.world_size,
            "parallelism": self.config.parallelism,
            "micro_batch_size": self.config.micro_batch_size,
        }

    def facts(self) -> dict[str, Any]:
        """What run.json says of a run beside its launch."""
        gpt, data = self.gpt, self.dataset
        coefficients = activations.tensor_names(gpt)
        return {
            "config_hash": log.config_hash(self.config),
            "activation": self.config.activation,
            "parameters": gpt.num_parameters(),
            "activation_parameters": sum(p.numel() for n, p in gpt.named_parameters() if n in coefficients),
            "flops_per_token": gpt.flops_per_token(),
            "data": {
                "corpus_sha256": data.corpus,
                "fingerprint": data.fingerprint,
                "train_tokens": len(data.train),
                "val_fingerprint": data.validation.tokens.fingerprint(),
                "val_targets": data.validation.num_targets,
                "val_rule": data.validation.rule,
            },
            "hardware": describe(self.processes.device) | {"processes": self.processes.world_size, "dtype": str(self.dtype)},
        }

    def evaluation_at(self, step: int) -> dict[str, Any] | None:
        """The evaluation row of a step in rank 0's metrics.jsonl, on every rank."""
        rows = log.read(self.out_dir / "metrics.jsonl") if self.processes.is_main else []
        found = [row for row in rows if "val_loss" in row and row["step"] == step]
        last: dict[str, Any] | None = self.processes.gather(found[-1] if found else None)[0]
        return last
