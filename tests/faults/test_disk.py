"""A disk that is full, fails, or allows no more: what was whole stays whole, and the same command goes on once that is over."""

import contextlib
import dataclasses
import errno
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.schema import Config
from data.shards import verify
from runtime import checkpoint
from tests.faults.forms import some
from tests.faults.injection import WRITE_CALLS, FailAt, FailWrites, LimitFiles
from tests.processes import Child, Inject, ends, one_line, reached, trained, trainer
from tests.runs import assert_same, keep

pytestmark = pytest.mark.fault
FULL, ROOMY = "1200k", "64m"  # room for two checkpoints of the small config, and for all
EIO, ENOSPC = errno.EIO, errno.ENOSPC


@pytest.fixture(scope="module")
def plain(base: Config) -> Config:
    """The undisturbed run."""
    return trained(dataclasses.replace(base, eval_interval=100, checkpoint_interval=3, keep_checkpoints=3))


RUNS = [
    *(("fsync", FailAt("fsync", call, EIO), os.strerror(EIO)) for call in range(1, 14)),
    *(("rename", FailAt("replace", call, ENOSPC), os.strerror(ENOSPC)) for call in range(1, 8)),
    ("size", LimitFiles(200_000), "cannot be written"),
    ("write", FailWrites(1 << 17, EIO), os.strerror(EIO)),
    ("write", FailWrites(1 << 12, EIO), os.strerror(EIO)),
]


@pytest.mark.parametrize(("kind", "inject", "told"), some(RUNS, slice(0, None, 7)))
def test_failing_calls_of_a_run(plain: Config, kind: str, inject: Inject, told: str) -> None:
    """The run stops with one line, what it had is whole, and without the fault it ends as the undisturbed one."""
    if kind == "write" and platform.machine() not in WRITE_CALLS:
        pytest.skip(f"writes are made to fail on {' and '.join(WRITE_CALLS)} alone")
    config = dataclasses.replace(plain, out_dir=f"{plain.out_dir}-{RUNS.index((kind, inject, told))}")
    child = trainer(config, inject)
    code = child.finish()
    assert code in (1, 2), child.said[-500:]
    one_line(child, code, told)
    whole(config)
    assert_same(plain, trained(config))


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs that is soon full."""
    place = folder / "small"
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={FULL}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs may be mounted here: ENOSPC comes from a failing call alone")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def resize(place: Path, size: str) -> None:
    """Another size for a mounted tmpfs."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


def test_a_full_disk_under_the_checkpoints(plain: Config, small_disk: Path) -> None:
    """A third checkpoint does not fit."""
    config = dataclasses.replace(plain, out_dir=str(small_disk / "run"))
    one_line(trainer(config), 1, "bytes are free", "the same command goes on")
    keep(len(whole(config)) == 2, "two checkpoints are not left")
    resize(small_disk, ROOMY)
    assert_same(plain, trained(config))


def test_a_full_disk_under_the_rows(plain: Config, small_disk: Path) -> None:
    """Another program fills the disk while rows are appended."""
    config = dataclasses.replace(
        plain, out_dir=str(small_disk / "rows"), max_steps=2000, checkpoint_interval=1000, lr_decay_steps=2000
    )
    resize(small_disk, ROOMY)
    child = trainer(config)
    child.until(reached(config, 5), "step 5")
    with open(small_disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:  # until there is no room
            os.write(file.fileno(), bytes(4096))
    one_line(child, 1, "No space left on device", "the same command goes on")
    os.unlink(small_disk / "filler")
    whole(trained(dataclasses.replace(config, max_steps=40)))


def test_a_full_disk_under_the_shards(folder: Path, small_disk: Path) -> None:
    prepare_in_two(folder, small_disk / "shards", None, lambda: resize(small_disk, ROOMY))


SHARDS = [("fsync", 2, EIO), ("replace", 4, ENOSPC), ("fsync", 4, EIO), ("replace", 2, ENOSPC)]


@pytest.mark.parametrize(("function", "call", "error"), some(SHARDS, slice(2)))
def test_failing_calls_of_a_preparation(folder: Path, function: str, call: int, error: int) -> None:
    prepare_in_two(folder, folder / f"shards-{function}-{call}", FailAt(function, call, error), lambda: None)


def prepare_in_two(folder: Path, out: Path, inject: FailAt | None, put_right: Callable[[], None]) -> None:
    """data.prepare stops with one line, nothing half-written counts, and the same command goes on and verifies."""
    source = folder / "corpus.jsonl"
    source.write_text("".join(f'{{"text": "{i} {"abcdefgh" * 500}"}}\n' for i in range(300)))
    argv = ["text", "--input", str(source), "--out", str(out), "--tokenizer", "bytes", "--shard_tokens", "400000"]
    one_line(Child("data.prepare", argv, folder / f"{out.name}.log", inject), 2, "the same command goes on")
    assert not (out / "meta.json").exists(), "meta.json is there, though the shards are not"
    put_right()
    ends(Child("data.prepare", argv, folder / f"{out.name}.log"))
    keep(len(verify(out)) == 2, "the shards do not verify")
    shutil.rmtree(out)


def whole(config: Config) -> list[Path]:
    """The checkpoints of a run, each of them loaded; nothing half-written beside them."""
    there = checkpoint.checkpoints(Path(config.out_dir))
    for path in there:
        checkpoint.load_model(path)
        checkpoint.load_state(path)
    assert not list(Path(config.out_dir).rglob("*.tmp")), "temporary files are left behind"
    return there
