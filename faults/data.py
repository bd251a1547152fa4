"""Damaged and wrong data: found before the first step, named by file and position."""

import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from config.schema import Config
from data.shards import HEADER_BYTES, META, header
from faults.process import Child, one_line, trainer
from faults.runs import rows, small_config, write_shards
from faults.tally import Tally, expect

TRAIN, VAL = "train_000000.bin", "val_000000.bin"


def run(tally: Tally, folder: Path) -> None:
    """Every fault in a copy of good shards, foreign ones and ours."""
    foreign = folder / "foreign"
    foreign.mkdir()
    write_shards(foreign)
    ours = prepared(folder)
    cases = [(foreign, *case) for case in FOREIGN] + [(ours, *case) for case in OURS]
    chosen = cases if tally.full else cases[::5]
    tally.plan(len(cases), len(chosen))
    for source, name, damage, *needed in chosen:
        with tally.fault(name):
            place = copy(source, folder / name.replace(" ", "_"))
            damage(place)
            refused(small_config(place, folder / "run"), folder, name, needed)
    flipped_bits(tally, ours, folder)
    changed(tally, foreign, folder)
    small_sets(tally, foreign, folder)


def refused(config: Config, folder: Path, name: str, needed: list[str]) -> None:
    """train.py ends with exit code 2, one line that says what and where, and no row of metrics."""
    out_dir = folder / f"run-{name.replace(' ', '_')}"
    config = dataclasses.replace(
        config, out_dir=str(out_dir), tokenizer="" if (Path(config.data_dir) / META).exists() else "bytes"
    )
    one_line(trainer(config, out_dir.with_suffix(".log")), 2, *needed)
    expect(not rows(config), "it trained")


def flipped_bits(tally: Tally, ours: Path, folder: Path) -> None:
    """One bit of one token, at the beginning, in the middle and at the end of a shard: `verify` names shard and place."""
    places = {"first": HEADER_BYTES, "middle": os.path.getsize(ours / TRAIN) // 2, "last": os.path.getsize(ours / TRAIN) - 2}
    for name, position in places.items():
        tally.plan(1, 1)
        with tally.fault(f"a flipped bit in the {name} token"):
            place = copy(ours, folder / f"flipped-{name}")
            patch(TRAIN, position, bytes([(place / TRAIN).read_bytes()[position] ^ 1]))(place)
            child = Child("data.prepare", ["verify", str(place)], folder / f"flipped-{name}.log")
            one_line(child, 2, TRAIN, "token")  # the one that left the vocabulary, or a block of them


def changed(tally: Tally, foreign: Path, folder: Path) -> None:
    """Shards that are others when the run goes on."""
    for name, damage, where in (
        ("changed tokens", patch(TRAIN, HEADER_BYTES, b"a\0" * 300), f"{TRAIN} differs in tokens 0 to"),
        (
            "one changed token",
            patch("train_000001.bin", HEADER_BYTES + 2 * 1777, b"?\0"),
            "train_000001.bin differs in tokens 0",
        ),
        ("a shard added", add_shard, "the shards are"),
    ):
        tally.plan(1, 1)
        with tally.fault(f"{name} between start and resume"):
            place = copy(foreign, folder / f"{name}-data")
            config = dataclasses.replace(
                small_config(place, folder / f"{name}-run"), max_steps=4, lr_decay_steps=12, checkpoint_interval=2
            )
            expect(trainer(config, folder / f"{name}.log").finish() == 0, "the run before the change failed")
            before = rows(config)
            damage(place)
            longer = dataclasses.replace(config, max_steps=12)
            one_line(trainer(longer, folder / f"{name}.log2"), 2, "has changed since", str(place), where)
            expect(rows(config) == before, "metrics.jsonl was touched")


def small_sets(tally: Tally, foreign: Path, folder: Path) -> None:
    """Sets that are too small for what the config asks."""
    for name, file, count, needed in (
        ("an empty validation set", VAL, 1, ["hold no target", VAL]),
        ("a set smaller than a batch", TRAIN, 100, ["fewer than global_batch_size", "lower either"]),
    ):
        tally.plan(1, 1)
        with tally.fault(name):
            place = copy(foreign, folder / name.replace(" ", "_"))
            (place / file).write_bytes(header(count) + b"a\0" * count)
            if file == TRAIN:
                (place / "train_000001.bin").unlink()
            refused(small_config(place, folder / "run"), folder, name, needed)


def prepared(folder: Path) -> Path:
    """Shards of ours, with a meta.json."""
    source, out = folder / "corpus.jsonl", folder / "ours"
    source.write_text("".join(f'{{"text": "{"abcdefgh" * 20} {i}"}}\n' for i in range(200)))
    argv = ["text", "--input", str(source), "--out", str(out), "--tokenizer", "bytes"]
    child = Child("data.prepare", argv, folder / "prepare.log")
    expect(child.finish() == 0, f"data.prepare failed: {child.said[-500:]}")
    return out


def copy(source: Path, place: Path) -> Path:
    """A copy of a folder."""
    return Path(shutil.copytree(source, place))


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

    def damage(folder: Path) -> None:
        os.truncate(folder / name, size if size >= 0 else os.path.getsize(folder / name) + size)

    return damage


def remove(name: str) -> Damage:
    """A file that is gone."""
    return lambda folder: (folder / name).unlink()


def rewrite_meta(**changes: object) -> Damage:
    """meta.json with other values."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / META).read_text()) | changes
        (folder / META).write_text(json.dumps(values))

    return damage


def add_shard(folder: Path) -> None:
    """One shard more."""
    (folder / "train_000009.bin").write_bytes(header(500) + b"a\0" * 500)


# name, damage, what the line must say
FOREIGN: list[tuple[str, Damage, str] | tuple[str, Damage, str, str]] = [
    ("a truncated shard", cut(TRAIN, -100), TRAIN, "the file at byte"),
    ("a shard with bytes added", lambda f: (f / VAL).write_bytes((f / VAL).read_bytes() + b"xx"), VAL, "the file at byte"),
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
    ("no folder", lambda folder: shutil.rmtree(folder), "does not exist", "python -m data.prepare"),
]
OURS: list[tuple[str, Damage, str] | tuple[str, Damage, str, str]] = [
    ("a token of ours beyond the vocabulary", patch(TRAIN, HEADER_BYTES + 2 * 40, b"\xff\xff"), TRAIN, "token 40 is 65535"),
    ("meta.json with too small a vocabulary", rewrite_meta(vocab_size=90), META, "vocab_size is 90"),
    ("meta.json with too large a vocabulary", rewrite_meta(vocab_size=60000), META, "vocab_size is 60000"),
    ("meta.json with other counts", rewrite_meta(tokens={"train": 5, "val": 5}, val_document_offsets=[]), META, "counts 5"),
    ("meta.json with other shards", rewrite_meta(shards={"train_000007.bin": "0"}), META, "lists the train shards"),
    ("meta.json with an unknown tokenizer", rewrite_meta(tokenizer="other"), "'other'"),
    ("meta.json with a field missing", lambda f: (f / META).write_text('{"tokenizer": "bytes"}'), META, "is missing"),
    ("meta.json that is no JSON", lambda f: (f / META).write_text("{"), META, "is not JSON"),
    ("meta.json that is binary", lambda f: (f / META).write_bytes(bytes(range(256))), META, "is not JSON"),
    ("a shard gone", remove(VAL), "val"),
    ("a shard added", add_shard, META, "lists the train shards"),
]
