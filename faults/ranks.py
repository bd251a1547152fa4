"""Ranks that are not alike: started with another setting, data, code or checkpoint, failing alone, or lost in set-up."""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import train
from config.schema import Config
from faults.numbers import AT, Scaled
from faults.process import PRESET, Child, one_line, trainer, worker
from faults.runs import arguments, free_port, rows, small_config, write_shards
from faults.tally import Tally, expect
from runtime.run import Run


@dataclass(frozen=True)
class Case:
    """Rank 1 differs from rank 0 in this; how both end, and what rank 0 says."""

    name: str
    said: tuple[str, ...]
    code: int = 2
    settings: dict[str, Any] = field(default_factory=dict)
    """Of both ranks."""
    other: dict[str, Any] = field(default_factory=dict)
    """Of rank 1."""
    patches: tuple[tuple[str, Any], ...] = ()
    """(what, by what) is replaced in rank 1, as `unittest.mock.patch` names it."""
    lost: bool = False
    """Rank 1 is killed."""


def cases(folder: Path) -> tuple[Config, list[Case]]:
    """The config of rank 0 and all cases, the data and checkpoints that they need made in `folder`."""
    data, changed = folder / "data", folder / "other data"
    data.mkdir(parents=True)
    base = dataclasses.replace(
        small_config(write_shards(data), folder / "run"), micro_batch_size=6, max_steps=8, eval_interval=8, timeout_s=60.0
    )
    shutil.copytree(data, changed)
    shard = changed / "train_000001.bin"
    held = bytearray(shard.read_bytes())
    held[-400] ^= 1  # another token, of the vocabulary, where no sample of the shard sees it
    shard.write_bytes(held)
    one = dataclasses.replace(base, out_dir=str(folder / "node0"), max_steps=4, lr_decay_steps=8, checkpoint_interval=2)
    one = dataclasses.replace(one, keep_checkpoints=9)
    made = trainer(one, folder / "node0.log")
    expect(made.finish() == 0, f"the undisturbed run failed: {made.said[-500:]}")
    shutil.copytree(folder / "node0", folder / "node1")
    shutil.rmtree(folder / "node1" / "checkpoints" / "step_00000004")
    steps = [str(folder / "node0" / "checkpoints" / f"step_0000000{step}") for step in (2, 4)]
    half = {"dtype": "float16"}
    stops = (f"stopped: step {AT + 1} gave loss", "--nonfinite skip")
    return base, [
        Case("another learning rate", ("rank 1 has learning_rate 0.001, rank 0 has 0.004",), other={"learning_rate": 1e-3}),
        Case("another seed", ("rank 1 has seed 7, rank 0 has 1337",), other={"seed": 7}),
        Case("another evaluation interval", ("rank 1 has eval_interval 4, rank 0 has 8",), other={"eval_interval": 4}),
        Case("data of equal size", ("rank 1 has tokens of train_000001.bin '",), other={"data_dir": str(changed)}),
        Case(
            "another checkpoint to go on from", ("rank 1 has resume step 2, rank 0 has 4",),
            settings={"out_dir": one.out_dir, "lr_decay_steps": 8}, other={"out_dir": str(folder / "node1")},
        ),
        Case(
            "other initial weights", ("rank 1 has hash of the weights '",),
            settings={"init_from": steps[0]}, other={"init_from": steps[1]},
        ),
        Case("another torch", ("rank 1 has torch version '9.9'",), patches=(("torch.__version__", "9.9"),)),
        Case("another commit", ("rank 1 has code commit 'fedcba'",), patches=(("runtime.log.provenance", other_commit),)),
        Case("no device", ("rank 1: device 'cuda:9'",), other={"device": "cuda:9"}),
        Case("set-up fails", ("rank 1: no room on this machine",), patches=(("runtime.setup.check_batch", fail),)),
        Case("the disk fails", ("rank 1: [Errno 5] no luck",), patches=(("runtime.setup.find_checkpoint", fail_to_read),)),
        Case("float16, its loss infinite", stops, 1, half, patches=(("train.take_step", infinite_loss),)),
        Case(
            "float16, its loss infinite, skip", (f"step {AT + 1} is skipped", "Next:"), 0, half | {"nonfinite": "skip"},
            patches=(("train.take_step", infinite_loss),),
        ),
        Case(
            "killed in set-up", ("rank 0 waited for another one, which is lost or hangs (timeout_s=2)",), 1,
            {"timeout_s": 2.0}, patches=(("runtime.setup.check_batch", die),), lost=True,
        ),
    ]  # fmt: skip


def run(tally: Tally, folder: Path) -> None:
    """Two processes a case: each ends as said, rank 0 with one line, nobody waits for longer than it has to."""
    base, found = cases(folder)
    short = {"another learning rate", "set-up fails", "float16, its loss infinite", "killed in set-up"}
    for case in found:
        if tally.plan(1, case.name in short) and tally.has_time:
            with tally.fault(f"on rank 1: {case.name}"):
                apart(case, configs(case, base, folder), folder)


def configs(case: Case, base: Config, folder: Path) -> list[Config]:
    """The configs of both ranks."""
    first = dataclasses.replace(base, **{"out_dir": str(folder / case.name.replace(" ", "-"))} | case.settings)
    return [first, dataclasses.replace(first, **case.other)]


def apart(case: Case, config: Sequence[Config], folder: Path) -> None:
    """Start both ranks and judge what they do."""
    port, log = free_port(), folder / f"{case.name.replace(' ', '-')}.log"
    both = [
        Child("train", [PRESET, *arguments(own)], log.with_suffix(f".{rank}.log"), inject, worker(rank, 2, port))
        for rank, (own, inject) in enumerate(zip(config, (Patch(()), Patch(case.patches)), strict=True))
    ]
    if case.code == 2 or case.lost:
        one_line(both[0], case.code, *case.said)
    else:
        judge(case, both[0].finish(), both[0].said, config[0])
    other = both[1].finish()
    expect(other == (9 if case.lost else case.code), f"rank 1: exit code {other}: {both[1].said[-500:]}")
    expect("Traceback" not in both[1].said, f"rank 1: {both[1].said[-500:]}")


def judge(case: Case, code: int, said: str, config: Config) -> None:
    """Rank 0 ended as it should, and said so."""
    expect(code == case.code, f"exit code {code}, not {case.code}: {said[-600:]}")
    expect("Traceback" not in said, f"a traceback: {said[-600:]}")
    for needed in case.said:
        expect(needed in said, f"{needed!r} is not in what it says: {said[-900:]}")
    if code == 0:
        expect(rows(config)[-1]["val_loss"] is not None, "the weights are not finite")


@dataclass(frozen=True)
class Patch:
    """In the child: replace these for good."""

    patches: Sequence[tuple[str, Any]]

    def __call__(self) -> None:
        for target, value in self.patches:
            mock.patch(target, value).start()


def other_commit() -> dict[str, Any]:
    """Provenance of another checkout."""
    return {"commit": "fedcba", "dirty": False, "command": []}


def fail(*_: object) -> None:
    """Bad input that one rank alone has."""
    raise ValueError("no room on this machine")


def fail_to_read(*_: object) -> None:
    """A disk that one rank alone has."""
    raise OSError(5, "no luck")


def die(*_: object) -> None:
    """As the system's memory killer ends a process."""
    os._exit(9)


_take_step = train.take_step


def infinite_loss(run: Run, step: int, batch: Any) -> Any:
    """A step whose loss is infinite at step AT."""
    original = run.model
    if step == AT:
        run.model = Scaled(original, float("inf"))
    try:
        return _take_step(run, step, batch)
    finally:
        run.model = original
