"""Small runs for tests: made as users make them, started as real processes, compared to the bit."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import train
from config.schema import Config
from config.tiny import config as tiny

ROOT = Path(__file__).parents[1]
CLOCKS = {"tokens_per_second", "ms_per_step", "mfu", "elapsed_s"}


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


def train_here(config: Config, **changes: Any) -> Config:
    """Train in this process and return the config that ran."""
    config = dataclasses.replace(config, **changes)
    assert train.main([str(ROOT / "config" / "tiny.py"), *arguments(config)]) == 0
    return config


@dataclass
class Launched:
    """A training process that was started."""

    process: subprocess.Popen[str]
    config: Config

    def send(self, number: signal.Signals, at_step: int) -> None:
        """Send a signal once metrics.jsonl holds a row of that step."""
        deadline = time.monotonic() + 120
        while not any(row["step"] >= at_step for row in rows(self.config)):
            assert self.process.poll() is None, f"ended before step {at_step}: {self.process.communicate()[1]}"
            assert time.monotonic() < deadline, f"no step {at_step} within two minutes"
            time.sleep(0.002)
        self.process.send_signal(number)

    def finish(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=240)
        return self.process.returncode, errors


def launch(config: Config, processes: int = 1, torchrun: tuple[str, ...] = (), **changes: Any) -> Launched:
    """Start train.py as users do: under torchrun for several processes, or where `torchrun` has arguments for it."""
    config = dataclasses.replace(config, **changes)
    command = [sys.executable]
    if processes > 1 or torchrun:
        command += ["-m", "torch.distributed.run", *(torchrun or ("--standalone",)), f"--nproc_per_node={processes}"]
    command += [str(ROOT / "train.py"), str(ROOT / "config" / "tiny.py"), *arguments(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
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
    return load_file(Path(config.out_dir) / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def assert_same(a: Config, b: Config) -> None:
    """Equal weights at the end, to the bit, and equal metrics but for the clocks."""
    for one, other in zip(metrics(a), metrics(b), strict=True):
        assert one == other
    first, second = weights(a, a.max_steps), weights(b, b.max_steps)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"weights differ in {different[:3]}"


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
