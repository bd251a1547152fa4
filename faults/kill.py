"""SIGKILL at random moments, and between the system calls of a checkpoint: the run goes on, and ends as if nothing had been."""

import dataclasses
import json
import random
import signal
import time
from pathlib import Path

from config.schema import Config
from faults.injection import DieAt
from faults.process import Child, trainers
from faults.runs import assert_same, small_config, write_shards
from faults.tally import Tally, expect, keep
from runtime import checkpoint, log

ALONE, TWO = (70, 4), (30, 2)  # how many kills in the full and in the short form, of one process and of one of two
CALLS = 60  # a run of this length makes some 400 of the calls that DieAt counts; most kills should come within its first second


def run(tally: Tally, folder: Path) -> None:
    """Kill, look at what is there, resume, until a run has ended; compare it with an undisturbed one; begin another."""
    data_dir = folder / "data"
    data_dir.mkdir()
    write_shards(data_dir)
    for processes, wanted in ((1, tally.plan(*ALONE)), (2, tally.plan(*TWO))):
        plain = dataclasses.replace(
            small_config(data_dir, folder / f"undisturbed-{processes}"),
            max_steps=40, eval_interval=5, checkpoint_interval=3, telemetry_interval=10, micro_batch_size=6,
        )  # fmt: skip
        started = time.monotonic()
        for child in trainers(plain, folder / "undisturbed.log", processes):
            expect(child.finish() == 0, f"the undisturbed run failed: {child.said[-500:]}")
        seconds = time.monotonic() - started
        generator = random.Random(processes)
        kills = attempt = 0
        while kills < wanted and tally.has_time:
            config = dataclasses.replace(plain, out_dir=str(folder / f"killed-{processes}-{attempt}"))
            kills += killed_run(tally, config, plain, processes, wanted - kills, seconds, generator)
            attempt += 1


def killed_run(
    tally: Tally, config: Config, plain: Config, processes: int, most: int, seconds: float, generator: random.Random
) -> int:
    """One run, killed again and again and then left alone: how many times it was killed."""
    log_file = Path(config.out_dir).with_suffix(".log")
    kills, code = 0, 1
    # The same kills may end with one of them after the last step: what counts is that somebody goes on.
    with tally.judge(f"{processes} processes, {config.out_dir}", 1):
        while kills < most and tally.has_time and code != 0:
            inside = generator.random() < 0.6
            inject = DieAt(generator.randint(1, CALLS), generator.random() < 0.5) if inside else None
            children = trainers(config, log_file, processes, inject)
            if not inside:
                time.sleep(generator.uniform(0.05, seconds))
                victims = children if generator.random() < 0.3 else [generator.choice(children)]
                for child in victims:
                    child.send(signal.SIGKILL)
            codes = end_together(children)
            code = max(abs(c) for c in codes)
            if -signal.SIGKILL in codes:
                kills += 1
                with tally.fault(f"kill {kills} of {config.out_dir}"):
                    look(config)
            else:
                expect(code == 0, f"exit codes {codes} without a kill: {children[0].said[-800:]}")
        if code != 0:
            for child in trainers(config, log_file, processes):
                expect(child.finish() == 0, f"the last resume failed: {child.said[-800:]}")
        assert_same(plain, config)
        best = [(Path(c.out_dir) / "checkpoints" / "best").read_text() for c in (plain, config)]
        keep(best[0] == best[1], f"best is {best[1]!r}, in the undisturbed run {best[0]!r}")
        records = [json.loads((Path(c.out_dir) / "run.json").read_text()) for c in (plain, config)]
        missing = records[0].keys() - records[1].keys()
        keep(not missing, f"run.json lacks {missing}")
        left = [path.name for path in Path(config.out_dir).rglob("*.tmp")]
        expect(not left, f"left behind: {left}")
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
    """What lies there after a kill is whole: the newest checkpoint, `best`, and the rows up to it."""
    out_dir = Path(config.out_dir)
    there = checkpoint.checkpoints(out_dir)
    steps = [row["step"] for row in log.read(out_dir / "metrics.jsonl") if "train_loss" in row]
    keep(steps == list(range(1, len(steps) + 1)), f"metrics.jsonl has the training steps {steps}")
    if not there:
        return
    for folder in there:
        checkpoint.load_model(folder)
    state = checkpoint.load_state(there[-1])
    keep(len(steps) >= state["progress"]["step"], f"{there[-1]} is ahead of the {len(steps)} rows of metrics.jsonl")
    best = out_dir / "checkpoints" / "best"
    if best.exists():
        keep(
            out_dir / "checkpoints" / best.read_text().strip() in there, f"best names {best.read_text()!r}, which is not there"
        )
