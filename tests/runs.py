"""Small runs: their data and config, in this process or as users start them, and what they leave, compared to the bit."""

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import start_processes

import train
from config.schema import Config
from config.tiny import config as tiny
from data.shards import header

ROOT = Path(__file__).parents[1]
PRESET = str(ROOT / "config" / "tiny.py")
CLOCKS = {"tokens_per_second", "ms_per_step", "mfu", "elapsed_s", "data_ms_per_step", "communication_ms_per_step"}
# In all tests and the processes that they fork: a killed process loses nothing without it, only a lost machine does.
# A run of a second asks for it 32 times, which took 0.2 s on a disk of 7 ms.
os.fsync = lambda fd: None
LIMIT_S = 600.0  # what takes seconds takes minutes on a busy machine; only what hangs takes longer


class DataLostError(AssertionError):
    """Something that had been written is gone or differs."""


def keep(condition: object, told: str) -> None:
    """Raise DataLostError unless the condition holds."""
    if not condition:
        raise DataLostError(told)


def write_shards(folder: Path) -> Path:
    """Foreign shards (no meta.json) of the bytes tokenizer: two of training, one of validation, with something to learn."""
    generator = np.random.default_rng(0)
    for name, count in (("train_000000", 6000), ("train_000001", 3001), ("val_000000", 1234)):
        words = generator.integers(97, 123, size=(count // 4 + 1, 1)) + np.array([0, 1, 2, -60])  # "abc%", "xyz>", ...
        tokens = words.reshape(-1)[:count].astype("<u2")
        (folder / f"{name}.bin").write_bytes(header(count) + tokens.tobytes())
    return folder


def small_config(data_dir: Path, out_dir: Path) -> Config:
    """A run of seconds: two layers of 32, float32, not compiled, twelve steps of twelve sequences."""
    return dataclasses.replace(
        tiny,
        activation="hermite:degree=3",
        n_layer=2,
        n_head=2,
        n_embd=32,
        block_size=32,
        data_dir=str(data_dir),
        tokenizer="bytes",
        global_batch_size=12,
        micro_batch_size=4,
        max_steps=12,
        log_interval=1,
        eval_interval=6,
        checkpoint_interval=100,
        warmup_steps=2,
        device="cpu",
        dtype="float32",
        compile=False,
        out_dir=str(out_dir),
    )


@dataclass
class Launched:
    """A training process that was started."""

    process: subprocess.Popen[str]
    config: Config

    def send(self, number: signal.Signals, at_step: int) -> None:
        """Send a signal once metrics.jsonl holds a row of that step."""
        deadline = time.monotonic() + LIMIT_S
        while not any(row["step"] >= at_step for row in rows(self.config)):
            assert self.process.poll() is None, f"ended before step {at_step}: {self.process.communicate()[1]}"
            assert time.monotonic() < deadline, f"no step {at_step} within {LIMIT_S} s"
            time.sleep(0.002)
        self.process.send_signal(number)

    def finish(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, errors


def launch(
    config: Config, processes: int = 1, torchrun: tuple[str, ...] = (), own_store: bool = False, **changes: Any
) -> Launched:
    """Start train.py as users do: under torchrun for several processes, or where `torchrun` has arguments for it.

    With `own_store` each attempt has a store of its own, as the README tells those who restart several nodes.
    """
    config = dataclasses.replace(config, **changes)
    command = [sys.executable]
    if processes > 1 or torchrun:
        command += ["-m", "torch.distributed.run", *(torchrun or ("--standalone",)), f"--nproc_per_node={processes}"]
    command += [str(ROOT / "train.py"), PRESET, *arguments(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": str(int(own_store))}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    return Launched(process, config)


def arguments(config: Config) -> list[str]:
    """The command line that makes config/tiny.py this config."""
    changed = {
        f.name: getattr(config, f.name) for f in dataclasses.fields(Config) if getattr(config, f.name) != getattr(tiny, f.name)
    }
    return [word for name, value in changed.items() for word in (f"--{name}", str(value))]


def rows(config: Config) -> list[dict[str, Any]]:
    """The whole rows of a run's metrics.jsonl, also while it is being written."""
    path = Path(config.out_dir) / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def metrics(config: Config) -> list[dict[str, Any]]:
    """The rows without clock readings."""
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows(config)]


def weights(config: Config, step: int) -> dict[str, torch.Tensor]:
    """The weights in a run's checkpoint."""
    found: dict[str, torch.Tensor] = load_file(Path(config.out_dir) / "checkpoints" / f"step_{step:08d}" / "model.safetensors")
    return found


def assert_same(a: Config, b: Config) -> None:
    """Equal weights at the end, to the bit, and equal metrics but for the clocks. Raises DataLostError."""
    first_rows, second_rows = metrics(a), metrics(b)
    steps = [[row["step"] for row in found] for found in (first_rows, second_rows)]
    keep(steps[0] == steps[1], f"metrics.jsonl of {a.out_dir} has the steps {steps[0]}, that of {b.out_dir} {steps[1]}")
    for one, other in zip(first_rows, second_rows, strict=True):
        keep(one == other, f"rows differ: {one} and {other}")
    first, second = weights(a, a.max_steps), weights(b, b.max_steps)
    keep(first.keys() == second.keys(), f"weights of other names: {sorted(first.keys() ^ second.keys())[:3]}")
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    keep(not different, f"weights differ in {different[:3]}")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def train_here(config: Config, **changes: Any) -> Config:
    """Train in this process and return the config that ran."""
    config = dataclasses.replace(config, **changes)
    assert train.main([PRESET, *arguments(config)]) == 0
    return config


def forkserver() -> ForkServerContext:
    """What forks processes from a server that has imported the programs and computed nothing; it starts with the first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.processes", "torch._inductor", "train", "sample", "compare", "data.prepare"])
    return context


def in_processes(work: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """work(rank, *arguments) in `count` processes, each started in a fraction of a second; raises what one of them raises."""
    forkserver()  # says what the server imports before start_processes starts it
    start_processes(work, arguments, nprocs=count, start_method="forkserver")
