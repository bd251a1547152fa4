"""Two processes in one folder: the second is told who has it; the lock of a process that died is free."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from config.schema import Config
from tests.processes import Child, ends, one_line, reached, trained, trainer
from tests.runs import assert_same

pytestmark = pytest.mark.fault


def test_two_runs_into_one_folder_and_a_stale_lock(base: Config, record_property: Callable[[str, object], None]) -> None:
    record_property("faults", 2)
    plain = trained(dataclasses.replace(base, max_steps=150, eval_interval=75, checkpoint_interval=10))
    config = dataclasses.replace(plain, out_dir=f"{plain.out_dir}-2")
    first = trainer(config)
    first.until(reached(config, 11), "step 11")
    first.send(signal.SIGSTOP)  # it holds the folder for as long as the second needs to come
    second = Child("train", first.argv, Path(f"{config.out_dir}.second"))
    one_line(second, 2, "is in use by process", str(first.pid), "since", config.out_dir)
    first.send(signal.SIGKILL)
    first.finish()
    assert_same(plain, trained(config))


def test_two_preparations_into_one_folder_and_a_stale_lock(
    folder: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("faults", 2)
    source, out = folder / "corpus.jsonl", folder / "shards"
    source.write_text("".join(f'{{"text": "{i} {"abcdefgh" * 200}"}}\n' for i in range(20_000)))
    argv = ["text", "--input", str(source), "--out", str(out), "--tokenizer", "bytes"]
    first = Child("data.prepare", argv, folder / "first.log")
    first.until((out / "progress.json").exists, "progress.json")
    first.send(signal.SIGSTOP)
    one_line(Child("data.prepare", argv, folder / "second.log"), 2, "is in use by process", str(first.pid), "since")
    first.send(signal.SIGKILL)
    first.finish()
    ends(Child("data.prepare", argv, folder / "third.log"))
    ends(Child("data.prepare", ["verify", str(out)], folder / "verify.log"))
