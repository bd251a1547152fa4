"""SIGKILL at random moments, and between the system calls of a checkpoint: the run goes on, and ends as if nothing had been."""

import dataclasses
import functools
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from config.schema import Config
from runtime import checkpoint, log
from tests.faults.forms import some
from tests.faults.injection import DieAt
from tests.processes import Child, trained, trainers
from tests.runs import assert_same, keep

pytestmark = pytest.mark.fault
KILLS = {1: 4, 2: 2}  # a test, for one process and for one of two
CALLS = 60  # a run of this length makes some 400 of the calls that DieAt counts; most kills should come within its first second

Undisturbed = Callable[[int], tuple[Config, float]]


@pytest.fixture(scope="module")
def undisturbed(base: Config) -> Undisturbed:
    """For a number of processes: a run that nobody killed, and how long it took."""

    @functools.cache
    def run(processes: int) -> tuple[Config, float]:
        started = time.monotonic()
        plain = dataclasses.replace(
            base, out_dir=f"{base.out_dir}-{processes}", max_steps=40, eval_interval=5, checkpoint_interval=3,
            telemetry_interval=10, micro_batch_size=6,
        )  # fmt: skip
        return trained(plain, processes), time.monotonic() - started

    return run


ROUNDS = [(1, seed) for seed in range(18)] + [(2, seed) for seed in range(15)]  # 72 and 30 kills


@pytest.mark.parametrize(("processes", "seed"), some(ROUNDS, slice(None, None, 18)))
def test_killed_again_and_again(
    undisturbed: Undisturbed, processes: int, seed: int, record_property: Callable[[str, object], None]
) -> None:
    """Kill, look at what is there, resume, until a run has ended; compare it with an undisturbed one; begin another."""
    record_property("faults", KILLS[processes])
    plain, seconds = undisturbed(processes)
    generator = random.Random(1000 * processes + seed)
    kills = attempt = 0
    while kills < KILLS[processes]:
        config = dataclasses.replace(plain, out_dir=f"{plain.out_dir}-{seed}-{attempt}")
        kills += killed_run(config, plain, processes, KILLS[processes] - kills, seconds, generator)
        attempt += 1


def killed_run(config: Config, plain: Config, processes: int, most: int, seconds: float, generator: random.Random) -> int:
    """One run, killed again and again and then left alone: how many times it was killed."""
    kills, code = 0, 1
    # The same kills may end with one of them after the last step: what counts is that somebody goes on.
    while kills < most and code != 0:
        inside = generator.random() < 0.6
        inject = DieAt(generator.randint(1, CALLS), generator.random() < 0.5) if inside else None
        children = trainers(config, processes, inject)
        if not inside:
            time.sleep(generator.uniform(0.05, seconds))
            for child in children if generator.random() < 0.3 else [generator.choice(children)]:
                child.send(signal.SIGKILL)
        codes = end_together(children)
        code = max(abs(c) for c in codes)
        assert code == 0 or -signal.SIGKILL in codes, f"exit codes {codes} without a kill: {children[0].said[-800:]}"
        if code:
            kills += 1
            look(config)
    if code != 0:
        trained(config, processes)
    assert_same(plain, config)
    folders = Path(plain.out_dir), Path(config.out_dir)
    best = [(folder / "checkpoints" / "best").read_text() for folder in folders]
    keep(best[0] == best[1], f"best is {best[1]!r}, in the undisturbed run {best[0]!r}")
    fields = [json.loads((folder / "run.json").read_text()).keys() for folder in folders]
    keep(fields[0] <= fields[1], f"run.json lacks {fields[0] - fields[1]}")
    assert not list(folders[1].rglob("*.tmp")), "temporary files are left behind"
    return kills


def end_together(children: list[Child]) -> list[int]:
    """Exit codes; where one ends badly the others are killed a little later, as torchrun does with its workers."""
    while any(child.alive for child in children) and not any(child.process.exitcode for child in children):
        time.sleep(0.01)
    deadline = time.monotonic() + 1
    while any(child.alive for child in children) and time.monotonic() < deadline:
        time.sleep(0.01)
    if any(child.process.exitcode for child in children):
        for child in children:
            child.send(signal.SIGKILL)
    return [child.finish() for child in children]


def look(config: Config) -> None:
    """What lies there after a kill is whole: every checkpoint, `best`, and the rows up to the newest one."""
    out_dir = Path(config.out_dir)
    there = checkpoint.checkpoints(out_dir)
    steps = [row["step"] for row in log.read(out_dir / "metrics.jsonl") if "train_loss" in row]
    keep(steps == list(range(1, len(steps) + 1)), f"metrics.jsonl has the training steps {steps}")
    for folder in there:
        checkpoint.load_model(folder)
    if there:
        step = checkpoint.load_state(there[-1])["progress"]["step"]
        keep(len(steps) >= step, f"{there[-1]} is ahead of the {len(steps)} rows of metrics.jsonl")
    best = out_dir / "checkpoints" / "best"
    keep(not (there and best.exists()) or out_dir / "checkpoints" / best.read_text().strip() in there, "best is not there")
