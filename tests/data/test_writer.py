import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shards import Tokens
from data.writer import ShardWriter


def random_tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 16, count).astype(np.uint16)


def write_all(folder: Path, tokens: np.ndarray, shard_tokens: int, pieces: list[int]) -> dict[str, str]:
    writer = ShardWriter(folder, "train", shard_tokens, {})
    for piece in np.split(tokens, np.cumsum(pieces)[:-1]):
        writer.write(piece)
    writer.close()
    assert writer.tokens == tokens.size
    return writer.shards


@given(pieces=st.lists(st.integers(0, 40), min_size=1), shard_tokens=st.integers(1, 50))
@settings(deadline=None, max_examples=30)
def test_what_is_written_in_any_pieces_is_one_stream(
    pieces: list[int], shard_tokens: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, tokens = tmp_path_factory.mktemp("shards"), random_tokens(sum(pieces))
    shards = write_all(folder, tokens, shard_tokens, pieces)
    assert len(shards) == -(-tokens.size // shard_tokens)
    assert sorted(path.name for path in folder.iterdir()) == sorted(shards)
    if shards:
        stream = Tokens([folder / name for name in sorted(shards)])
        assert np.array_equal(stream.read(0, len(stream)), tokens)


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    shards = write_all(tmp_path, random_tokens(25), 10, [25])
    assert {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in shards} == shards


def test_the_header_is_that_of_llm_c(tmp_path: Path) -> None:
    write_all(tmp_path, np.array([7, 500], dtype=np.uint16), 10, [2])
    content = (tmp_path / "train_000000.bin").read_bytes()
    assert np.frombuffer(content[:1024], "<i4").tolist() == [20240520, 1, 2] + [0] * 253
    assert content[1024:] == b"\x07\x00\xf4\x01"


@given(
    before=st.integers(0, 60),
    lost=st.integers(0, 60),
    after=st.integers(0, 60),
    shard_tokens=st.integers(1, 25),
    closed=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_writer_goes_on_from_the_last_sync(
    before: int, lost: int, after: int, shard_tokens: int, closed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, tokens = tmp_path_factory.mktemp("resumed"), random_tokens(before + after)
    first = ShardWriter(folder, "train", shard_tokens, {})
    first.write(tokens[:before])
    first.sync()
    shards, count = dict(first.shards), first.tokens
    first.write(random_tokens(lost, seed=1))
    if closed:  # stopped between its last shard and the description of the folder
        first.close()
    first.abandon()
    second = ShardWriter(folder, "train", shard_tokens, shards, count)
    second.write(tokens[before:])
    second.close()
    straight = tmp_path_factory.mktemp("straight")
    assert second.shards == write_all(straight, tokens, shard_tokens, [tokens.size])
    assert {path.name for path in folder.iterdir()} == set(second.shards)


def test_a_shard_that_is_not_whole_has_no_name(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", 10, {})
    writer.write(random_tokens(5))
    writer.sync()
    assert list(tmp_path.glob("*train*.bin")) == []
    writer.abandon()
    assert list(tmp_path.glob("*train*.bin")) == []


def test_a_shard_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    rename = os.replace
    monkeypatch.setattr(os, "fsync", lambda _: order.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), rename(a, b)))
    write_all(tmp_path, random_tokens(15), 10, [15])
    assert order == ["fsync", "rename"] * 2


def test_a_partial_shard_that_was_cut_is_named(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", 10, {})
    writer.write(random_tokens(5))
    writer.abandon()
    (tmp_path / "train_000000.bin.partial").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train_000000.bin.partial ends before byte 1034"):
        ShardWriter(tmp_path, "train", 10, {}, 5)


def test_other_files_in_the_folder_stay(tmp_path: Path) -> None:
    for name in ("train_notes.bin.txt", "val_000000.bin", "train_1.bin"):
        (tmp_path / name).write_text("mine")
    ShardWriter(tmp_path, "train", 10, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_1.bin", "train_notes.bin.txt", "val_000000.bin"]
