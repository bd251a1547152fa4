import dataclasses
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import shards
from data.shards import HEADER_BYTES, META, Meta, Tokens, first_change, header, open_split, read_meta, verify, write_meta
from data.writer import ShardWriter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared folder: 250 training tokens in three shards, 40 of validation, below a vocabulary of 257."""
    generator = np.random.default_rng(0)
    written = {}
    for split, count in (("train", 250), ("val", 40)):
        writer = ShardWriter(tmp_path, split, 100, {})
        writer.write(generator.integers(0, 257, count).astype(np.uint16))
        writer.close()
        written.update(writer.shards)
    write_meta(
        tmp_path,
        Meta(
            tokenizer="bytes",
            vocab_size=257,
            tokens={"train": 250, "val": 40},
            bytes={"train": 249, "val": 38},
            documents={"train": 1, "val": 2},
            val_document_offsets=[0, 13],
            source="here",
            revision="local",
            corpus_sha256="0" * 64,
            shards=written,
            checksums=shards.Tokens([tmp_path / name for name in written]).checksums(),
        ),
    )
    return tmp_path


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_range_is_read_across_shards(stream: Tokens, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(stream)))
    count = data.draw(st.integers(0, len(stream) - start))
    whole = np.concatenate([np.fromfile(path, "<u2")[512:] for path in stream.paths])
    assert np.array_equal(stream.read(start, count), whole[start : start + count])


def test_reading_beyond_the_end_is_our_own_mistake(stream: Tokens) -> None:
    with pytest.raises(AssertionError, match=r"read\(10006, 2\) of 10007 tokens"):
        stream.read(10_006, 2)


def test_a_prepared_folder_opens_and_verifies(folder: Path) -> None:
    assert [len(open_split(folder, split)) for split in ("train", "val")] == [250, 40]
    assert [path.name for path in open_split(folder, "train").paths] == [f"train_{i:06d}.bin" for i in range(3)]
    lines = verify(folder)
    assert "3 shards, 250 tokens, headers, sizes, ids and sha256 agree" in lines[0]


def test_foreign_shards_need_no_meta(tmp_path: Path) -> None:
    for name, tokens in (("fineweb_train_000001", [5, 6]), ("fineweb_train_000002", [7]), ("fineweb_val_000000", [8])):
        (tmp_path / f"{name}.bin").write_bytes(header(len(tokens)) + np.array(tokens, "<u2").tobytes())
    (tmp_path / "train_000009.bin.partial").write_bytes(b"half")
    assert open_split(tmp_path, "train").read(0, 3).tolist() == [5, 6, 7]
    assert open_split(tmp_path, "val").read(0, 1).tolist() == [8]
    assert "no meta.json to check more by" in verify(tmp_path)[0]


def damage_header(at: int, value: int) -> Any:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at : at + 4] = value.to_bytes(4, "little", signed=True)
        path.write_bytes(content)

    return damage


FAULTS = {
    "cut in its tokens": (
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        "tokens end at byte 1224, the file at byte 1223",
    ),
    "cut in its header": (lambda p: p.write_bytes(p.read_bytes()[:500]), "end at byte 1224, the file at byte 500"),
    "cut to nothing": (lambda p: p.write_bytes(b""), "no room for the header"),
    "too long": (lambda p: p.write_bytes(p.read_bytes() + b"\0\0"), "end at byte 1224, the file at byte 1226"),
    "wrong magic": (damage_header(0, 20240801), "magic at byte 0 is 20240801"),
    "wrong version": (damage_header(4, 2), "version at byte 4 is 2"),
    "negative count": (damage_header(8, -1), "token count at byte 8 is -1"),
    "huge count": (damage_header(8, 2**31 - 1), "its 2147483647 tokens end at byte 4294968318"),
    "zero count": (lambda p: p.write_bytes(header(0)), "counts 0 tokens"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_shard_is_named_with_the_position(fault: str, folder: Path) -> None:
    damage, message = FAULTS[fault]
    path = folder / "train_000001.bin"
    damage(path)
    with pytest.raises(ValueError, match=message) as raised:
        open_split(folder, "train")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_shards_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \*val\*.bin; type: python -m data.prepare"):
        open_split(tmp_path, "val")
    with pytest.raises(ValueError, match="is no folder"):
        verify(tmp_path / "missing")


@pytest.mark.parametrize("position", [0, 99, 100, 249])
def test_an_id_beyond_the_vocabulary_is_named_with_the_position(
    position: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SCAN_TOKENS", 64)
    path = folder / f"train_{position // 100:06d}.bin"
    tokens = np.memmap(path, "<u2", "r+", offset=1024)
    tokens[position % 100] = 300
    tokens.flush()
    message = f"{path.name}: token {position % 100} is 300, beyond the vocabulary of 257"
    with pytest.raises(ValueError, match=message):
        verify(folder)
    stream = open_split(folder, "train")
    found = []
    for rank in range(3):  # one rank has it in its share
        try:
            stream.check_vocabulary(257, rank, 3)
        except ValueError as error:
            found.append(str(error))
    assert len(found) == 1
    stream.check_vocabulary(301)


def test_a_flipped_bit_is_found_by_verify(folder: Path) -> None:
    path = folder / "val_000000.bin"
    content = bytearray(path.read_bytes())
    content[1024 + 2 * 17] ^= 1
    path.write_bytes(content)
    assert len(open_split(folder, "val")) == 40
    with pytest.raises(ValueError, match=r"val_000000.bin: sha256 is [0-9a-f]{64}, meta.json says .* in tokens 0 to 65535"):
        verify(folder)
    meta = read_meta(folder)
    assert meta is not None
    write_meta(folder, dataclasses.replace(meta, checksums={}))  # as folders were prepared before there were checksums
    with pytest.raises(ValueError, match=r"val_000000.bin: sha256 is .*; where is not known"):
        verify(folder)


def test_the_fingerprint_tells_a_changed_set(folder: Path) -> None:
    before = open_split(folder, "train").fingerprint()
    assert open_split(folder, "train").fingerprint() == before
    path = folder / "train_000002.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\x00\x01")
    assert open_split(folder, "train").fingerprint() != before


def test_checksums_say_which_tokens_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SCAN_TOKENS", 8)
    before = open_split(folder, "train").checksums()
    assert first_change(before, open_split(folder, "train").checksums()) == ""
    path = folder / "train_000001.bin"
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 2 * 17] ^= 1
    path.write_bytes(data)
    assert first_change(before, open_split(folder, "train").checksums()) == "train_000001.bin differs in tokens 16 to 23"
    assert first_change(before, {}) == f"the shards are , they were {', '.join(before)}"


def test_a_missing_or_added_shard_disagrees_with_meta(folder: Path) -> None:
    (folder / "train_000003.bin").write_bytes(header(1) + b"\0\0")
    with pytest.raises(ValueError, match=r"meta.json lists the train shards .*the folder holds .*train_000003"):
        open_split(folder, "train")
    (folder / "train_000003.bin").unlink()
    (folder / "train_000002.bin").unlink()
    with pytest.raises(ValueError, match="lists the train shards"):
        open_split(folder, "train")


def test_counts_that_disagree_with_meta_are_named(folder: Path) -> None:
    meta = read_meta(folder)
    assert meta is not None
    write_meta(folder, replace(meta, tokens={"train": 251, "val": 40}))
    with pytest.raises(ValueError, match="counts 251 train tokens, the shards hold 250"):
        open_split(folder, "train")


def test_meta_survives_the_disk(folder: Path) -> None:
    meta = read_meta(folder)
    assert meta is not None
    write_meta(folder, meta)
    assert read_meta(folder) == meta
    assert not list(folder.glob("*.partial"))
    assert read_meta(folder / "elsewhere") is None


BAD_META = {
    "tokenizer": 5,
    "vocab_size": 65537,
    "tokens": {"train": 1},
    "bytes": {"train": 1, "val": -1},
    "documents": {"train": True, "val": 1},
    "val_document_offsets": [3, 3],
    "source": None,
    "revision": [],
    "corpus_sha256": 1.5,
    "shards": {"../train_000000.bin": "0"},
    "settings": [],
    "expected": "none",
}


@pytest.mark.parametrize("name", BAD_META)
def test_each_field_of_meta_is_checked(name: str, folder: Path) -> None:
    good = asdict(read_meta(folder))  # type: ignore[arg-type]
    (folder / META).write_text(json.dumps({**good, name: BAD_META[name]}))
    with pytest.raises(ValueError, match=f"meta.json: '{name}' .*; delete the folder"):
        read_meta(folder)


@pytest.mark.parametrize("name", ["/etc/train.bin", "a/train.bin", "..\\train.bin", "train.txt", "../../val.bin"])
def test_shard_names_are_plain(name: str, folder: Path) -> None:
    good = asdict(read_meta(folder))  # type: ignore[arg-type]
    (folder / META).write_text(json.dumps({**good, "shards": {name: "0"}}))
    with pytest.raises(ValueError, match="plain"):
        read_meta(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"unknown": 1}'])
def test_what_is_no_meta_is_refused(content: bytes, folder: Path) -> None:
    (folder / META).write_bytes(content)
    with pytest.raises(ValueError, match=META) as raised:
        open_split(folder, "train")
    assert len(str(raised.value)) < 500


def test_a_missing_an_unknown_and_a_late_value_are_named(folder: Path) -> None:
    good = asdict(read_meta(folder))  # type: ignore[arg-type]
    for change, message in (
        ({"colour": 1}, "'colour' is unknown"),
        ({"val_document_offsets": [40]}, "go beyond the validation tokens"),
    ):
        (folder / META).write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=message):
            read_meta(folder)
    del good["source"]
    (folder / META).write_text(json.dumps(good))
    with pytest.raises(ValueError, match="'source' is missing"):
        read_meta(folder)


def test_a_huge_meta_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "META_BYTES", 10)
    with pytest.raises(ValueError, match="more than 10"):
        read_meta(folder)


@given(content=st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_json_is_refused_or_read(content: Any, folder: Path) -> None:
    good = asdict(read_meta(folder) or pytest.fail("no meta"))
    for values in (content, dict.fromkeys(good, content)):
        (folder / "other.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"other\.json"):
            read_meta(folder, "other.json")


def test_a_shard_cut_while_it_is_read_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    """A memory mapping would end in SIGBUS here."""
    count = 200_000
    path = tmp_path / "train_000000.bin"
    path.write_bytes(header(count) + bytes(2 * count))
    tokens = Tokens([path])
    os.truncate(path, 4096)
    assert tokens.read(0, 100).tolist() == [0] * 100
    with pytest.raises(OSError, match=r"train_000000.bin ends at byte 4096: it was cut while it was in use"):
        tokens.read(150_000, 64)
    with pytest.raises(OSError, match="was cut"):
        tokens.read(1000, 5000)


def test_shard_names_are_whole_words(tmp_path: Path) -> None:
    shard = shards.header(5) + b"a\0" * 5
    names = {
        "fineweb_train_000001.bin": "train", "training-1.bin": "train", "Train.bin": "train", "x_val_0.bin": "val",
        "validation0001.bin": "val", "constraint.bin": "", "evaluation.bin": "", "trainer.bin": "", "interval.bin": "",
    }  # fmt: skip
    for name in names:
        (tmp_path / name).write_bytes(shard)
    for split in ("train", "val"):
        found = [path.name for path in shards.open_split(tmp_path, split).paths]
        assert found == sorted(name for name, expected in names.items() if expected == split)
    (tmp_path / "train_val.bin").write_bytes(shard)
    with pytest.raises(ValueError, match=r"train_val.bin is named as a shard of both splits"):
        shards.open_split(tmp_path, "val")


def test_nanogpt_s_files_without_a_header_are_read(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50257, 3001).astype("<u2")
    for split in ("train", "val"):
        ids.tofile(tmp_path / f"{split}.bin")
        tokens = shards.open_split(tmp_path, split)
        assert len(tokens) == 3001
        assert np.array_equal(tokens.read(0, 3001), ids)
        assert np.array_equal(tokens.read(1500, 20), ids[1500:1520])
    assert shards.verify(tmp_path)
    ids.astype("<u4").tofile(tmp_path / "train.bin")
    with pytest.raises(ValueError, match=r"train.bin holds uint32 tokens"):
        shards.open_split(tmp_path, "train")
    for damaged in (bytes(4) + shards.header(500)[4:] + b"a\0" * 500, b"", b"abc"):
        (tmp_path / "train.bin").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"train.bin: (magic|no room)"):
            shards.open_split(tmp_path, "train")
    ids.tofile(tmp_path / "train_000000.bin")
    (tmp_path / "train.bin").unlink()
    with pytest.raises(ValueError, match=r"train_000000.bin: magic at byte 0"):
        shards.open_split(tmp_path, "train")
