"""Damaged and wrong data: found before the first step, named by file and position."""

import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from config.schema import Config
from data.shards import HEADER_BYTES, META, header
from tests.faults.forms import some
from tests.processes import Child, ends, one_line, trained, trainer
from tests.runs import rows

pytestmark = pytest.mark.fault
TRAIN, VAL = "train_000000.bin", "val_000000.bin"
Damage = Callable[[Path], object]


def patch(name: str, position: int, content: bytes) -> Damage:
    """Other bytes at a position of a file."""

    def damage(folder: Path) -> None:
        with open(folder / name, "r+b") as file:
            file.seek(position)
            file.write(content)

    return damage


def cut(name: str, size: int) -> Damage:
    """A file cut (or, below zero, cut by so much)."""
    return lambda folder: os.truncate(folder / name, size if size >= 0 else os.path.getsize(folder / name) + size)


def remove(name: str) -> Damage:
    """A file that is gone."""
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Damage:
    """Another content of a file, or one file more."""
    return lambda folder: (folder / name).write_bytes(content)


def rewrite_meta(**changes: object) -> Damage:
    """meta.json with other values."""
    return lambda folder: (folder / META).write_text(json.dumps(json.loads((folder / META).read_text()) | changes))


def shard(tokens: int) -> bytes:
    """A shard of so many tokens."""
    return header(tokens) + b"a\0" * tokens


def small_set(folder: Path) -> None:
    """Fewer training tokens than a batch has."""
    (folder / TRAIN).write_bytes(shard(100))
    (folder / "train_000001.bin").unlink()


# name, damage, what the line must say
FOREIGN: list[tuple[str, Damage, *tuple[str, ...]]] = [
    ("a truncated shard", cut(TRAIN, -100), TRAIN, "the file at byte"),
    ("a shard with bytes added", patch(VAL, HEADER_BYTES + 2 * 1234, b"xx"), VAL, "the file at byte"),
    ("an empty shard file", cut(TRAIN, 0), TRAIN, "no room for the header"),
    ("a shard cut in its header", cut(TRAIN, 600), TRAIN, "the file at byte 600"),
    ("a wrong magic", patch(TRAIN, 0, struct.pack("<i", 7)), TRAIN, "magic at byte 0 is 7"),
    ("a wrong version", patch(VAL, 4, struct.pack("<i", 2)), VAL, "version at byte 4 is 2"),
    ("a negative count", patch(TRAIN, 8, struct.pack("<i", -5)), TRAIN, "token count at byte 8 is -5"),
    ("a count of zero", patch(TRAIN, 8, struct.pack("<i", 0)), TRAIN),
    ("a count beyond the file", patch(TRAIN, 8, struct.pack("<i", 2**31 - 1)), TRAIN, "the file at byte"),
    ("a token beyond the vocabulary", patch(TRAIN, HEADER_BYTES + 2 * 17, b"\x01\x01"), TRAIN, "token 17 is 257"),
    ("a validation token beyond it", patch(VAL, HEADER_BYTES + 2 * 1233, b"\xff\xff"), VAL, "token 1233 is 65535"),
    ("no validation shard", remove(VAL), "val"),
    ("an empty validation set", write(VAL, shard(1)), "hold no target", VAL),
    ("a set smaller than a batch", small_set, "fewer than global_batch_size", "lower either"),
    ("no folder", lambda folder: shutil.rmtree(folder), "does not exist", "python -m data.prepare"),
]
OURS: list[tuple[str, Damage, *tuple[str, ...]]] = [
    ("a token of ours beyond the vocabulary", patch(TRAIN, HEADER_BYTES + 2 * 40, b"\xff\xff"), TRAIN, "token 40 is 65535"),
    ("meta.json with too small a vocabulary", rewrite_meta(vocab_size=90), META, "vocab_size is 90"),
    ("meta.json with too large a vocabulary", rewrite_meta(vocab_size=60000), META, "vocab_size is 60000"),
    ("meta.json with other counts", rewrite_meta(tokens={"train": 5, "val": 5}, val_document_offsets=[]), META, "counts 5"),
    ("meta.json with other shards", rewrite_meta(shards={"train_000007.bin": "0"}), META, "lists the train shards"),
    ("meta.json with an unknown tokenizer", rewrite_meta(tokenizer="other"), "'other'"),
    ("meta.json with a field missing", write(META, b'{"tokenizer": "bytes"}'), META, "is missing"),
    ("meta.json that is no JSON", write(META, b"{"), META, "is not JSON"),
    ("meta.json that is binary", write(META, bytes(range(256))), META, "is not JSON"),
    ("a shard gone", remove(VAL), "val"),
    ("a shard added", write("train_000009.bin", shard(500)), META, "lists the train shards"),
]


@pytest.fixture(scope="module")
def ours(folder: Path) -> Path:
    """Shards of ours, with a meta.json."""
    source, out = folder / "corpus.jsonl", folder / "ours"
    source.write_text("".join(f'{{"text": "{"abcdefgh" * 20} {i}"}}\n' for i in range(200)))
    argv = ["text", "--input", str(source), "--out", str(out), "--tokenizer", "bytes"]
    ends(Child("data.prepare", argv, folder / "prepare.log"))
    return out


@pytest.mark.parametrize(("name", "case"), some([(c[0], c[1:]) for c in FOREIGN + OURS], slice(0, None, 5)))
def test_refused(
    name: str, case: tuple[Damage, *tuple[str, ...]], base: Config, data_dir: Path, ours: Path, tmp_path: Path
) -> None:
    """train.py ends with exit code 2, one line that says what and where, and no row of metrics."""
    own = name in {c[0] for c in OURS}
    place = shutil.copytree(ours if own else data_dir, tmp_path / "data")
    damage, *needed = case
    damage(place)
    tokenizer = "" if (place / META).exists() else "bytes"
    config = dataclasses.replace(base, data_dir=str(place), out_dir=str(tmp_path / "run"), tokenizer=tokenizer)
    one_line(trainer(config), 2, *needed)
    assert not rows(config), "it trained"


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_verify_finds_a_flipped_bit(ours: Path, tmp_path: Path, where: str) -> None:
    """One bit of one token at the beginning, in the middle or at the end of a shard: `verify` names shard and place."""
    place = shutil.copytree(ours, tmp_path / "data")
    size = os.path.getsize(place / TRAIN)
    position = {"first": HEADER_BYTES, "middle": size // 2, "last": size - 2}[where]
    patch(TRAIN, position, bytes([(place / TRAIN).read_bytes()[position] ^ 1]))(place)
    one_line(Child("data.prepare", ["verify", str(place)], tmp_path / "log"), 2, TRAIN, "token")


CHANGES = [
    ("changed tokens", patch(TRAIN, HEADER_BYTES, b"a\0" * 300), f"{TRAIN} differs in tokens 0 to"),
    ("one token", patch("train_000001.bin", HEADER_BYTES + 2 * 1777, b"?\0"), "train_000001.bin differs in tokens 0"),
    ("a shard added", write("train_000009.bin", shard(500)), "the shards are"),
]


@pytest.mark.parametrize(("name", "damage", "where"), CHANGES, ids=[change[0] for change in CHANGES])
def test_changed_between_start_and_resume(
    name: str, damage: Damage, where: str, base: Config, data_dir: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(data_dir, tmp_path / "data")
    config = trained(
        dataclasses.replace(
            base, data_dir=str(place), out_dir=str(tmp_path / "run"), max_steps=4, lr_decay_steps=12, checkpoint_interval=2
        )
    )
    before = rows(config)
    damage(place)
    one_line(trainer(dataclasses.replace(config, max_steps=12)), 2, "has changed since", str(place), where)
    assert rows(config) == before, "metrics.jsonl was touched"
