"""Two processes in one folder: the second is told who has it; the lock of a process that died is free."""

import dataclasses
import signal
from pathlib import Path

from faults.process import Child, one_line, reached, trainer
from faults.runs import assert_same, small_config, write_shards
from faults.tally import Tally, expect


def run(tally: Tally, folder: Path) -> None:
    """Two runs, a stale lock, two preparations, and a preparation that was killed."""
    data_dir = folder / "data"
    data_dir.mkdir()
    config = dataclasses.replace(
        small_config(write_shards(data_dir), folder / "run"), max_steps=150, eval_interval=75, checkpoint_interval=10
    )
    plain = dataclasses.replace(config, out_dir=str(folder / "plain"))
    expect(trainer(plain, folder / "plain.log").finish() == 0, "the undisturbed run failed")
    tally.plan(2, 2)
    first = trainer(config, folder / "first.log")
    with tally.fault("two runs into one out_dir"):
        first.until(reached(config, 11), "step 11")
        first.send(signal.SIGSTOP)  # it holds the folder for as long as the second needs to come
        one_line(trainer(config, folder / "second.log"), 2, "is in use by process", str(first.pid), "since", config.out_dir)
    with tally.fault("a lock whose owner was killed"):
        first.send(signal.SIGKILL)
        first.finish()
        again = trainer(config, folder / "third.log")
        expect(again.finish() == 0, f"the stale lock held: {again.said[-500:]}")
        assert_same(plain, config)
    two_preparations(tally, folder)


def two_preparations(tally: Tally, folder: Path) -> None:
    """The same for data.prepare."""
    source, out = folder / "corpus.jsonl", folder / "shards"
    source.write_text("".join(f'{{"text": "{i} {"abcdefgh" * 200}"}}\n' for i in range(20_000)))
    argv = ["text", "--input", str(source), "--out", str(out), "--tokenizer", "bytes"]
    tally.plan(2, 2)
    first = Child("data.prepare", argv, folder / "prepare.log")
    with tally.fault("two preparations into one folder"):
        first.until((out / "progress.json").exists, "progress.json")
        first.send(signal.SIGSTOP)
        one_line(Child("data.prepare", argv, folder / "prepare2.log"), 2, "is in use by process", str(first.pid), "since")
    with tally.fault("a preparation that was killed"):
        first.send(signal.SIGKILL)
        first.finish()
        again = Child("data.prepare", argv, folder / "prepare3.log")
        expect(again.finish() == 0, f"it did not go on: {again.said[-500:]}")
        verified = Child("data.prepare", ["verify", str(out)], folder / "verify.log")
        expect(verified.finish() == 0, verified.said)
