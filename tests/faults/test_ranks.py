"""Ranks that are not alike: started with another setting, data, code or checkpoint, failing alone, or lost in set-up."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import train
from config.schema import Config
from runtime.run import Run
from tests.faults.injection import AT, Scaled
from tests.processes import Child, ends, one_line, trained, worker
from tests.runs import PRESET, arguments, free_port, in_processes, rows

pytestmark = pytest.mark.fault


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


def cases(small: Config, folder: Path) -> tuple[Config, list[Case]]:
    """The config of rank 0 and all cases, the data and checkpoints that they need made in `folder`."""
    base = dataclasses.replace(small, micro_batch_size=6, max_steps=8, eval_interval=8, timeout_s=60.0)
    changed = shutil.copytree(base.data_dir, folder / "other data")
    shard = changed / "train_000001.bin"
    held = bytearray(shard.read_bytes())
    held[-400] ^= 1  # another token, of the vocabulary, where no sample of the shard sees it
    shard.write_bytes(held)
    beyond = shutil.copytree(base.data_dir, folder / "data of another vocabulary") / "train_000001.bin"
    held[-400:-398] = (40_000).to_bytes(2, "little")
    beyond.write_bytes(held)
    one = dataclasses.replace(base, out_dir=str(folder / "node0"), max_steps=4, lr_decay_steps=8, checkpoint_interval=2)
    one = dataclasses.replace(one, keep_checkpoints=9)
    trained(one)
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
            "a token beyond the vocabulary", (f"rank 1: {beyond}: token ", "is 40000, beyond the vocabulary of 257"),
            other={"data_dir": str(beyond.parent)},
        ),
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


def _all_cases(rank: int, folder: str, found: list[Case], commands: list[list[list[str]]], ports: list[int]) -> None:
    """Every case in one process a rank: exit codes and what was said go into files."""
    for index, (case, argv, port) in enumerate(zip(found, commands, ports, strict=True)):
        os.environ |= worker(rank, 2, port)
        with contextlib.ExitStack() as stack:
            said = stack.enter_context(open(f"{folder}/{index}.{rank}.said", "w"))
            stack.enter_context(contextlib.redirect_stderr(said))
            for target, value in case.patches if rank else ():
                stack.enter_context(mock.patch(target, value))
            code = train.main([PRESET, *argv[rank]])
        Path(f"{folder}/{index}.{rank}.code").write_text(str(code))


def test_ranks_that_are_not_alike_end_together_and_say_why(
    small: Config, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each case that leaves its processes alive, in one process a rank."""
    base, found = cases(small, tmp_path)
    found = [case for case in found if not case.lost]
    record_property("faults", len(found))
    pairs = [configs(case, base, tmp_path) for case in found]
    ports = [free_port() for _ in found]
    in_processes(_all_cases, (str(tmp_path), found, [[arguments(c) for c in pair] for pair in pairs], ports), 2)
    for index, (case, (first, _)) in enumerate(zip(found, pairs, strict=True)):
        codes = [int((tmp_path / f"{index}.{rank}.code").read_text()) for rank in range(2)]
        assert codes == [case.code] * 2, case.name
        said = (tmp_path / f"{index}.0.said").read_text()
        judge(case, codes[0], said, first)
        if case.code == 2:
            assert said.count("train.py: ") == 1, said
            assert not (Path(first.out_dir) / "config.json").exists() or "step" in case.said[0], "something was written"


def test_a_rank_that_is_killed_in_set_up(small: Config, tmp_path: Path) -> None:
    """Rank 0 says in one line whom it waited for, and does not wait for longer than it has to."""
    base, found = cases(small, tmp_path)
    (case,) = (case for case in found if case.lost)
    port = free_port()
    both = [
        Child("train", [PRESET, *arguments(config)], tmp_path / f"{rank}.log", Patch(patches), worker(rank, 2, port))
        for rank, (config, patches) in enumerate(zip(configs(case, base, tmp_path), ((), case.patches), strict=True))
    ]
    one_line(both[0], case.code, *case.said)
    ends(both[1], 9)


def configs(case: Case, base: Config, folder: Path) -> list[Config]:
    """The configs of both ranks."""
    first = dataclasses.replace(base, **{"out_dir": str(folder / case.name.replace(" ", "-"))} | case.settings)
    return [first, dataclasses.replace(first, **case.other)]


def judge(case: Case, code: int, said: str, config: Config) -> None:
    """Rank 0 ended as it should, and said so."""
    assert code == case.code, f"exit code {code}, not {case.code}: {said[-600:]}"
    for needed in case.said:
        assert needed in said, f"{needed!r} is not in what it says: {said[-900:]}"
    assert "Traceback" not in said, said[-600:]
    assert code != 0 or rows(config)[-1]["val_loss"] is not None, "the weights are not finite"


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
