"""The estimate is near what a step takes, and a config above what there is is refused with the field to lower."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from bench import memory as bench
from config.schema import Config, GPTConfig
from config.tiny import config as tiny
from model import MLP
from runtime import memory
from tests.runs import ROOT

CPU = torch.device("cpu")
FACTOR = 1.5  # measured 0.99 to 1.23 for shapes of every kind, on Linux with glibc
MEASURE = """
import re, torch, torch._dynamo
from pathlib import Path
from config.schema import GPTConfig
from model import GPT
torch.set_num_threads(1)
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=256, block_size=256, vocab_size=5000))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
tokens = torch.zeros(8, 256, dtype=torch.int64)
for _ in range(2):
    model(tokens, tokens).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc: ru_maxrss of a child begins at its parent's")
def test_the_estimate_is_near_the_measured_peak() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ)
    chosen = {"global_batch_size": 8, "micro_batch_size": 8, "compile": False}
    config = dataclasses.replace(tiny, vocab_size=5000, n_layer=4, n_head=4, n_embd=256, block_size=256, **chosen)
    estimate = memory.estimate(config, CPU, torch.float32).total
    assert estimate / FACTOR < int(done.stdout) < estimate * FACTOR


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_the_estimate_is_what_the_allocator_counts(dtype: str, recompute: str) -> None:
    """Within 15 %, uncompiled; `python -m bench.memory` has compiled ones."""
    config = bench.make_config("bytes", CPU, dtype, recompute, compiles=False)
    row = bench.measure("bytes", dataclasses.replace(config, block_size=64, micro_batch_size=4, global_batch_size=4), CPU)
    assert row["estimate"] / row["measured"] == pytest.approx(1, abs=0.15)


def test_gradients_that_are_added_up_count_once_more(small: Config) -> None:
    """With several micro-batches a step the gradients lie there while activations are kept."""
    one, many = (
        memory.estimate(dataclasses.replace(small, vocab_size=257, global_batch_size=n), CPU, torch.float32) for n in (4, 8)
    )
    assert many.state == one.state
    assert many.step == pytest.approx(one.step + many.state / 4, abs=1)


@pytest.mark.parametrize("mlp", ["plain", "gated"])
def test_an_mlp_keeps_what_its_backward_reads(mlp: str) -> None:
    """c_fc's and c_gate's output, the activation's and the product: four times the width of one; counted from autograd."""
    gpt = GPTConfig(n_layer=3, n_head=1, n_embd=192, block_size=16, vocab_size=64, mlp=mlp)
    inside = memory.block_bytes(gpt, 1, CPU, torch.float32) / (16 * 4) - 192 * 8
    block = MLP(dataclasses.replace(gpt, activation="silu", bias=False))
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> None:
        kept[tensor.data_ptr()] = tensor.numel()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda _: None):
        block(torch.zeros(16, 192, requires_grad=True))
    weights = {parameter.data_ptr() for parameter in block.parameters()}
    assert inside * 16 == sum(count for pointer, count in kept.items() if pointer not in weights) - 16 * 192


@pytest.mark.parametrize(
    ("changes", "lower"),
    [
        ({"n_layer": 10_000, "n_embd": 16384}, "lower n_layer or n_embd, or start more processes with --parallelism fsdp"),
        ({"global_batch_size": 2**24, "micro_batch_size": 2**24}, r"type --micro_batch_size \d+"),
        ({"n_layer": 256, "block_size": 2**18, "global_batch_size": 1, "micro_batch_size": 1}, "type --recompute blocks"),
    ],
)
def test_what_cannot_fit_is_refused(
    small: Config, changes: dict[str, int], lower: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "total_bytes", lambda device: 16 << 30)
    config = dataclasses.replace(small, vocab_size=257, **changes)
    with pytest.raises(ValueError, match=rf"this config needs about .* GiB a process .* cpu has .* GiB for it; {lower}$"):
        memory.check(config, CPU, 1, torch.float32)
    memory.check(dataclasses.replace(small, vocab_size=257), CPU, 2, torch.float32)


def test_this_machine_has_some() -> None:
    assert memory.total_bytes(torch.device("cpu")) > 1 << 28
