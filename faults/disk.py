"""A disk that is full, fails, or allows no more: what was whole stays whole, and the same command goes on once that is over."""

import dataclasses
import errno
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from config.schema import Config
from data.shards import verify
from faults.injection import WRITE_CALLS, FailAt, FailWrites
from faults.process import Child, one_line, reached, trainer
from faults.runs import assert_same, small_config, write_shards
from faults.tally import Tally, expect, keep
from runtime import checkpoint

FULL, ROOMY = "1200k", "64m"  # room for two checkpoints of the small config, and for all


def run(tally: Tally, folder: Path) -> None:
    """Checkpoints, metrics and shards on a small tmpfs where one may be mounted, and with calls that fail, everywhere."""
    data_dir = folder / "data"
    data_dir.mkdir()
    config = dataclasses.replace(
        small_config(write_shards(data_dir), folder / "plain"), eval_interval=100, checkpoint_interval=3, keep_checkpoints=3
    )
    child = trainer(config, folder / "plain.log")
    expect(child.finish() == 0, f"the undisturbed run failed: {child.said[-500:]}")
    failing_calls(tally, folder, config)
    failing_shards(tally, folder)
    tally.plan(3, 3)
    with small_disk(folder / "small", FULL) as mounted:
        if mounted:
            full_disk(tally, folder, config)
            full_metrics(tally, folder, config)
            full_shards(tally, folder)
        else:
            tally.notes.append("no tmpfs may be mounted here: ENOSPC comes from a failing call alone")


def failing_calls(tally: Tally, folder: Path, plain: Config) -> None:
    """EIO and ENOSPC from fsync and rename at several moments; a limit on the size of files; EIO from the writes themselves."""
    faults = [("fsync", call, errno.EIO) for call in range(1, 14)] + [("replace", call, errno.ENOSPC) for call in range(1, 8)]
    for function, call, error in faults[:: 1 if tally.full else 7]:
        tally.plan(1, 1)
        with tally.fault(f"{os.strerror(error)} from {function} {call}"):
            go_on(plain, folder / f"{function}-{call}", FailAt(function, call, error), os.strerror(error))
    tally.plan(1, 1)
    with tally.fault("a limit on the size of files"):
        go_on(plain, folder / "limit", LimitFiles(200_000), "cannot be written")
    if platform.machine() not in WRITE_CALLS:
        tally.notes.append(f"writes are made to fail on {' and '.join(WRITE_CALLS)} alone")
        return
    for size in (1 << 17, 1 << 12)[:: 1 if tally.full else 2]:
        tally.plan(1, 1)
        with tally.fault(f"EIO from every write of {size} bytes or more"):
            go_on(plain, folder / f"write-{size}", FailWrites(size, errno.EIO), os.strerror(errno.EIO))


def go_on(plain: Config, out_dir: Path, inject: "FailAt | FailWrites | LimitFiles", told: str) -> None:
    """The run stops with one line, what it had is whole, and without the fault it ends as the undisturbed one."""
    config = dataclasses.replace(plain, out_dir=str(out_dir))
    child = trainer(config, out_dir.with_suffix(".log"), inject)
    code = child.finish()
    expect(code in (1, 2), f"exit code {code}: {child.said[-500:]}")
    one_line(child, code, told)
    whole(config)
    again = trainer(config, out_dir.with_suffix(".log2"))
    expect(again.finish() == 0, f"it did not go on: {again.said[-500:]}")
    assert_same(plain, config)


def full_disk(tally: Tally, folder: Path, plain: Config) -> None:
    """A third checkpoint that does not fit."""
    config = dataclasses.replace(plain, out_dir=str(folder / "small" / "run"))
    with tally.fault("a full disk under the checkpoints"):
        one_line(trainer(config, folder / "full.log"), 1, "bytes are free", "the same command goes on")
        keep(len(whole(config)) == 2, f"{len(whole(config))} checkpoints are left of 2")
        resize(folder / "small", ROOMY)
        expect(trainer(config, folder / "full.log2").finish() == 0, "it did not go on")
        assert_same(plain, config)


def full_metrics(tally: Tally, folder: Path, plain: Config) -> None:
    """A disk that another program fills while rows are appended."""
    config = dataclasses.replace(
        plain, out_dir=str(folder / "small" / "rows"), max_steps=2000, checkpoint_interval=1000, lr_decay_steps=2000
    )
    with tally.fault("a full disk under metrics.jsonl"):
        resize(folder / "small", ROOMY)
        child = trainer(config, folder / "rows.log")
        child.until(reached(config, 5), "step 5")
        with open(folder / "small" / "filler", "wb", buffering=0) as file:
            block = bytes(4096)
            while write(file.fileno(), block):
                pass
        one_line(child, 1, "No space left on device", "the same command goes on")
        os.unlink(folder / "small" / "filler")
        shorter = dataclasses.replace(config, max_steps=40)
        expect(trainer(shorter, folder / "rows.log2").finish() == 0, "it did not go on")
        whole(config)


def full_shards(tally: Tally, folder: Path) -> None:
    """Shards that do not fit."""
    with tally.fault("a full disk under the shards"):
        for path in (folder / "small").iterdir():
            shutil.rmtree(path)
        resize(folder / "small", FULL)
        prepare_in_two(folder, folder / "small" / "shards", None, lambda: resize(folder / "small", ROOMY))


def failing_shards(tally: Tally, folder: Path) -> None:
    """EIO and ENOSPC from fsync and rename while shards are written."""
    faults = [("fsync", 2, errno.EIO), ("fsync", 4, errno.EIO), ("replace", 2, errno.ENOSPC), ("replace", 4, errno.ENOSPC)]
    for function, call, error in faults[:: 1 if tally.full else 3]:
        tally.plan(1, 1)
        with tally.fault(f"{os.strerror(error)} from {function} {call} of data.prepare"):
            prepare_in_two(folder, folder / f"shards-{function}-{call}", FailAt(function, call, error), lambda: None)


def prepare_in_two(folder: Path, out: Path, inject: FailAt | None, put_right: object) -> None:
    """data.prepare stops with one line, nothing half-written counts, and the same command goes on and verifies."""
    source = folder / "corpus.jsonl"
    if not source.exists():
        source.write_text("".join(f'{{"text": "{i} {"abcdefgh" * 500}"}}\n' for i in range(300)))
    argv = ["text", "--input", str(source), "--out", str(out), "--tokenizer", "bytes", "--shard_tokens", "400000"]
    one_line(Child("data.prepare", argv, folder / f"{out.name}.log", inject), 2, "the same command goes on")
    expect(not (out / "meta.json").exists(), "meta.json is there, though the shards are not")
    assert callable(put_right), "a function"
    put_right()
    again = Child("data.prepare", argv, folder / f"{out.name}.log2")
    expect(again.finish() == 0, f"it did not go on: {again.said[-500:]}")
    keep(len(verify(out)) == 2, "the shards do not verify")


def whole(config: Config) -> list[Path]:
    """The checkpoints of a run, each of them loaded; nothing half-written beside them."""
    there = checkpoint.checkpoints(Path(config.out_dir))
    for path in there:
        checkpoint.load_model(path)
        checkpoint.load_state(path)
    left = [path.name for path in Path(config.out_dir).rglob("*.tmp")]
    expect(not left, f"left behind: {left}")
    return there


@dataclass(frozen=True)
class LimitFiles:
    """No file of this process may grow beyond this size: the system refuses it in whatever library writes."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """A tmpfs of that size at `folder`; False where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    """Another size for a mounted tmpfs."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def write(descriptor: int, block: bytes) -> int:
    """Bytes written; 0 where there is no room."""
    try:
        return os.write(descriptor, block)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return 0
