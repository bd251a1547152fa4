"""A worker that has trained other runs trains the next one as a new process does, to the bit; what goes wrong ends it."""

import dataclasses
import json
import logging
import os
import random
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comparison import run, worker
from config.schema import Config
from runtime.shared_state import SharedState
from tests.runs import LIMIT_S, PRESET, arguments, assert_same, forkserver

COMPILED = {"compile": True, "n_layer": 1, "n_embd": 16, "max_steps": 4, "eval_interval": 4}


def work(configs: list[Config], folder: Path, inject: Callable[[], object] | None = None) -> tuple[int, int]:
    """(exit code, number of answers) of a worker that is given runs of these configurations."""
    folder.mkdir(parents=True)
    orders = [
        {"arguments": [PRESET, *arguments(config)], "log": str(folder / f"{i}.log"), "forgets_graphs": False}
        for i, config in enumerate(configs)
    ]
    (folder / "orders").write_text("".join(json.dumps(order) + "\n" for order in orders))
    process = forkserver().Process(target=_work, args=(folder, inject), daemon=True)
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode is not None, "it has not ended"
    return process.exitcode, (folder / "answers").read_text().count("done\n")


def _work(folder: Path, inject: Callable[[], object] | None) -> None:
    for number, name, flags in (
        (0, "orders", 0),
        (1, "answers", os.O_WRONLY | os.O_CREAT),
        (2, "log", os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(folder / name, flags), number)
    torch.set_num_threads(1)
    if inject:
        inject()
    sys.exit(worker.main())


def dirty() -> None:
    """After every run, all that the process shares is another."""
    original = run.main

    def main(argv: list[str]) -> int:
        code = original(argv)
        soil()
        return code

    run.main = main


def soil() -> None:
    os.environ["OMP_NUM_THREADS"] = "7"
    os.environ["A_NEW_ONE"] = "1"
    os.chdir("/")
    sys.path.insert(0, "/nowhere")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.getLogger().addHandler(logging.NullHandler())
    logging.getLogger().setLevel(logging.CRITICAL)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")


def state() -> dict[str, Any]:
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "signal": signal.getsignal(signal.SIGTERM),
        "logging": (list(logging.getLogger().handlers), logging.getLogger().level),
        "random": (random.random(), float(np.random.random()), float(torch.rand(1, dtype=torch.float64))),
        "torch": (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()),
        "kernels": (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
    }


def test_what_a_process_shares_is_put_back() -> None:
    torch.manual_seed(torch.initial_seed())  # from its beginning, as in a new process
    before, found = SharedState(), state()
    try:
        soil()
        soiled = state()
    finally:
        before.restore()
    assert all(soiled[name] != value for name, value in found.items())
    assert state() == found


def test_a_run_in_a_used_worker_is_that_of_a_new_process(small: Config, tmp_path: Path) -> None:
    """With dropout, which draws from the global generator, and after a run that left the process in disorder."""
    first = dataclasses.replace(small, out_dir=str(tmp_path / "first"), telemetry_interval=6)
    used = dataclasses.replace(small, activation="fourier:degree=2", seed=5, dropout=0.1, out_dir=str(tmp_path / "used"))
    new = dataclasses.replace(used, out_dir=str(tmp_path / "new"))
    assert work([first, used], tmp_path / "a", dirty) == (0, 2)
    assert work([new], tmp_path / "b") == (0, 1)
    assert_same(used, new)
    measured = [json.loads((Path(c.out_dir) / "measured.json").read_text()) for c in (used, new)]
    assert measured[0] == measured[1]
    launched, there = (json.loads((Path(c.out_dir) / "run.json").read_text()) for c in (used, new))
    clocks = {"peak_memory_bytes", "command", "wandb_id"}
    assert {k: v for k, v in launched.items() if k not in clocks} == {k: v for k, v in there.items() if k not in clocks}
    assert launched["command"][0] == "train.py"
    assert "step 12: val_loss" in (tmp_path / "a" / "1.log").read_text()
    assert "hermite:degree=3,per=" not in (tmp_path / "a" / "1.log").read_text()


def count_graphs() -> None:
    """After every run, the number of graphs that were compiled so far goes into its folder."""
    original = run.main

    def main(argv: list[str]) -> int:
        code = original(argv)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        Path(f"{argv[argv.index('--out_dir') + 1]}.graphs").write_text(str(graphs))
        return code

    run.main = main


def test_graphs_are_compiled_once_and_give_the_same_bits(small: Config, tmp_path: Path) -> None:
    def of(name: str, activation: str, seed: int) -> Config:
        return dataclasses.replace(small, **COMPILED, activation=activation, seed=seed, out_dir=str(tmp_path / name))

    used = [of("a", "gelu", 1), of("b", "hermite:degree=2", 1), of("c", "gelu", 2), of("d", "hermite:degree=2", 2)]
    new = of("new", "hermite:degree=2", 2)
    assert work(used, tmp_path / "worker", count_graphs) == (0, 4)
    assert work([new], tmp_path / "alone") == (0, 1)
    assert_same(used[-1], new)
    graphs = [int((tmp_path / f"{name}.graphs").read_text()) for name in "abcd"]
    assert graphs[0] < graphs[1] == graphs[2] == graphs[3]


def test_a_run_that_ends_badly_ends_its_worker_with_its_exit_code(small: Config, tmp_path: Path) -> None:
    wrong = dataclasses.replace(small, data_dir=str(tmp_path / "none"))
    assert work([wrong, small], tmp_path / "worker") == (2, 0)
    assert "does not exist" in (tmp_path / "worker" / "0.log").read_text()
    assert not Path(small.out_dir).exists()


def fake_wandb() -> None:
    sys.modules["wandb"] = types.ModuleType("wandb")


def test_a_worker_with_wandb_in_it_trains_no_second_run(small: Config, tmp_path: Path) -> None:
    second = dataclasses.replace(small, out_dir=str(tmp_path / "second"))
    assert work([small, second], tmp_path / "worker", fake_wandb) == (0, 0)
    assert (Path(small.out_dir) / "measured.json").is_file()
    assert not Path(second.out_dir).exists()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux alone lets a process reset its peak")
def test_the_peak_of_an_earlier_run_is_not_a_later_ones(small: Config, tmp_path: Path) -> None:
    second = dataclasses.replace(small, out_dir=str(tmp_path / "second"))
    assert work([small, second], tmp_path / "worker", take_memory) == (0, 2)
    peaks = [json.loads((Path(c.out_dir) / "run.json").read_text())["peak_memory_bytes"] for c in (small, second)]
    assert peaks[1] < peaks[0] - 200e6


def take_memory() -> None:
    """The first run takes 400 MB more than it needs."""
    original, taken = run.train.main, []

    def main(argv: list[str]) -> int:
        if not taken:
            taken.append(np.ones(50_000_000).sum())
        return original(argv)

    run.train.main = main
