"""Prepared data on disk: token shards in the layout of llm.c and modded-nanogpt, and the `meta.json` beside them.

A shard is 256 int32 (magic, version, token count, zeros), then the tokens as uint16, all little-endian. The shards of a
split, in the order of their names, are one stream. Other people's shards work as they are, without a `meta.json`, and so
do nanoGPT's train.bin and val.bin, which are tokens without a header.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data.files import write_json

Ids = npt.NDArray[np.uint16]

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4
TOKEN_BYTES = 2
META = "meta.json"
META_BYTES = 1 << 28  # a document offset takes about 12 bytes; no honest file comes near, and a hostile one is not read
SCAN_TOKENS = 1 << 16  # a block that stays in the cache, and as near as a checksum tells where tokens changed
SPLIT_WORDS = {"train": {"train", "training"}, "val": {"val", "valid", "validation"}}
AGAIN = "delete the folder and prepare it again"


def open_split(data_dir: str | Path, split: str) -> "Tokens":
    """The tokens of `train` or `val` in a folder: every .bin file with that word in its name, in name order.

    Reads headers and sizes, not the tokens. ValueError, naming file and position: no shard, wrong magic or version, a size
    that is not the header's, or shards other than those that `meta.json` lists.
    """
    folder = Path(data_dir)
    paths = sorted(path for path in folder.glob("*.bin") if split in _splits(path.name))
    if not paths:
        raise ValueError(f"{folder} holds no *{split}*.bin; {prepare_hint(folder)}")
    if both := next((path for path in paths if len(_splits(path.name)) == 2), None):
        raise ValueError(f"{both} is named as a shard of both splits; rename it")
    tokens = Tokens(paths)
    meta = read_meta(folder)
    if meta is not None:
        listed = sorted(name for name in meta.shards if split in _splits(name))
        found = [path.name for path in paths]
        if listed != found:
            raise ValueError(f"{folder / META} lists the {split} shards {listed}, the folder holds {found}; {AGAIN}")
        if meta.tokens[split] != len(tokens):
            raise ValueError(
                f"{folder / META} counts {meta.tokens[split]} {split} tokens, the shards hold {len(tokens)}; {AGAIN}"
            )
    return tokens


class Tokens:
    """One stream of uint16 tokens over shards."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._shards = [_Shard(path) for path in paths]
        self._ends = np.cumsum([shard.size for shard in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, count: int) -> Ids:
        """A copy of tokens start to start + count, across shard boundaries."""
        assert 0 <= start <= start + count <= len(self), f"read({start}, {count}) of {len(self)} tokens"
        out = np.empty(count, dtype=np.uint16)
        done = 0
        while done < count:
            index, first = self._locate(start + done)
            piece = self._shards[index].read(first, count - done)
            out[done : done + piece.size] = piece
            done += piece.size
        return out

    def check_vocabulary(self, vocab_size: int, rank: int = 0, world_size: int = 1) -> None:
        """ValueError, naming file and position, for a token id at or above vocab_size; reads rank's share of the stream."""
        first, last = len(self) * rank // world_size, len(self) * (rank + 1) // world_size
        for start in range(first, last, SCAN_TOKENS):
            tokens = self.read(start, min(SCAN_TOKENS, last - start))
            if int(tokens.max()) >= vocab_size:
                worst = int(np.argmax(tokens >= vocab_size))
                index, position = self._locate(start + worst)
                raise ValueError(
                    f"{self.paths[index]}: token {position} is {tokens[worst]}, beyond the vocabulary of {vocab_size}; "
                    "name the tokenizer that wrote it, or prepare the data again"
                )

    def largest(self) -> int:
        """The largest token id; reads all of them."""
        return max(
            int(shard.read(start, SCAN_TOKENS).max()) for shard in self._shards for start in range(0, shard.size, SCAN_TOKENS)
        )

    def checksums(self) -> dict[str, list[int]]:
        """File name -> CRC-32 of each SCAN_TOKENS of its tokens; reads all of them."""
        return {
            path.name: [zlib.crc32(shard.read(start, SCAN_TOKENS).data) for start in range(0, shard.size, SCAN_TOKENS)]
            for path, shard in zip(self.paths, self._shards, strict=True)
        }

    def fingerprint(self) -> str:
        """A hash of names, sizes and blocks of tokens from each shard: tells a changed set without reading all of it."""
        digest = hashlib.sha256()
        for path, shard in zip(self.paths, self._shards, strict=True):
            digest.update(f"{path.name} {shard.size} ".encode())
            for start in np.linspace(0, max(0, shard.size - 256), 16, dtype=np.int64):
                digest.update(shard.read(int(start), 256).tobytes())
        return digest.hexdigest()

    def _locate(self, position: int) -> tuple[int, int]:
        """Shard and place in it of a token of the stream."""
        index = int(np.searchsorted(self._ends, position, side="right"))
        return index, position - int(self._ends[index] - self._shards[index].size)


def _splits(name: str) -> set[str]:
    """The splits that a file name names, in whole words: constraint.bin is no train shard, evaluation.bin no val one."""
    words = set(re.findall("[a-z]+", name.lower()))
    return {split for split, spelled in SPLIT_WORDS.items() if words & spelled}


def first_change(before: dict[str, list[int]], now: dict[str, list[int]]) -> str:
    """Which file differs, and in which of its tokens, between two `checksums`; "" where none does."""
    if list(before) != list(now):
        return f"the shards are {', '.join(now)}, they were {', '.join(before)}"
    for name, sums in now.items():
        if sums != before[name]:
            same = [new == old for new, old in zip(sums, before[name], strict=False)]
            start = SCAN_TOKENS * same.index(False) if False in same else 0
            return f"{name} differs in tokens {start} to {start + SCAN_TOKENS - 1}"
    return ""


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says of a prepared folder. Splits are the keys `train` and `val`."""

    tokenizer: str  # gpt2, bytes, or tokenizer.json@SHA256 of the file beside the shards
    vocab_size: int
    tokens: dict[str, int]
    bytes: dict[str, int]  # of text, end-of-text tokens not counted
    documents: dict[str, int]
    val_document_offsets: list[int]  # first token of each validation document, in the stream of the validation split
    source: str
    revision: str
    corpus_sha256: str  # of the texts and their splits, whatever the tokenizer
    shards: dict[str, str]  # file name -> sha256 of the file
    settings: dict[str, Any] = field(default_factory=dict)  # what it was prepared with; equal settings find it finished
    expected: dict[str, int] = field(default_factory=dict)  # published totals that these differ from
    skipped: int = field(default_factory=int)  # rows without text, in no split
    notes: list[str] = field(default_factory=list)  # what was read and left out, for people
    checksums: dict[str, list[int]] = field(default_factory=dict)  # `Tokens.checksums` of both splits: where damage is


def read_meta(data_dir: str | Path, name: str = META) -> Meta | None:
    """The folder's `meta.json` (or another file of that form), checked field by field as foreign data; None: there is none.

    ValueError naming the file and the field.
    """
    path = Path(data_dir) / name
    if not path.exists():
        return None
    if path.stat().st_size > META_BYTES:
        raise ValueError(f"{path} is {path.stat().st_size} bytes, more than {META_BYTES}; {AGAIN}")
    try:
        values = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {AGAIN}") from error
    problem = _problem(values)
    if problem:
        raise ValueError(f"{path}: {problem}; {AGAIN}")
    return Meta(**values)


def write_meta(data_dir: str | Path, meta: Meta, name: str = META) -> None:
    """Writes `meta.json` (or another file of that form) atomically."""
    write_json(Path(data_dir) / name, asdict(meta))


def verify(data_dir: str | Path) -> list[str]:
    """Reads a prepared folder whole: headers, counts, token ids below the vocabulary, sha256 of each shard.

    Returns one line of success a split; ValueError naming file and position of the first damage. Foreign shards without
    `meta.json` are checked for header and size alone.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; type: python -m data.prepare verify DIR")
    meta = read_meta(folder)
    lines = []
    for split in ("train", "val"):
        tokens = open_split(folder, split)
        if meta is not None:
            tokens.check_vocabulary(meta.vocab_size)
            for path in tokens.paths:
                found = file_sha256(path)
                if found != meta.shards[path.name]:
                    before = {name: sums for name, sums in meta.checksums.items() if name == path.name}
                    place = first_change(before, Tokens([path]).checksums()) if before else ""
                    said = f"sha256 is {found}, {META} says {meta.shards[path.name]}"
                    raise ValueError(f"{path}: {said}; {place or 'where is not known'}; {AGAIN}")
        checked = "headers, sizes, ids and sha256 agree" if meta else f"headers and sizes agree; no {META} to check more by"
        lines.append(f"{folder} {split}: {len(tokens.paths)} shards, {len(tokens):,} tokens, {checked}")
    return lines


def prepare_hint(data_dir: str | Path) -> str:
    """What to type for a folder that holds no prepared data: the command of the same name, if there is one."""
    name = Path(data_dir).name
    if name in ("openwebtext", "pystdlib"):
        return f"type: python -m data.prepare {name} --out {data_dir}"
    return f"type: python -m data.prepare text --input FILES --out {data_dir}, or give another --data_dir"


def header(count: int) -> bytes:
    """The header of a shard of that many tokens."""
    values = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    values[:3] = MAGIC, VERSION, count
    return values.tobytes()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Shard:
    """The tokens of one file. ValueError for what is no shard; OSError for one that is cut while it is in use.

    Read, not memory-mapped: the system kills a process that touches a page of a mapping whose file was cut (SIGBUS).
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        self._start = 0 if _is_headerless(path, size) else HEADER_BYTES
        self.size = _read_count(path, self._file) if self._start else size // TOKEN_BYTES
        if self._start and size != HEADER_BYTES + TOKEN_BYTES * self.size:
            place = f"its {self.size} tokens end at byte {HEADER_BYTES + TOKEN_BYTES * self.size}, the file at byte {size}"
            raise ValueError(f"{path}: {place}; it was cut or added to: copy it or prepare it again")
        if self.size == 0:
            raise ValueError(f"{path}: the header at byte 8 counts 0 tokens; delete the file")

    def read(self, first: int, count: int) -> Ids:
        """At most `count` tokens from token `first` on, fewer at the end of the shard."""
        count = min(count, self.size - first)
        start, wanted = self._start + TOKEN_BYTES * first, TOKEN_BYTES * count
        found = os.pread(self._file.fileno(), wanted, start)
        while (
            len(found) < wanted
        ):  # a signal or a network file system may end a read early; only the end of the file gives nothing
            more = os.pread(self._file.fileno(), wanted - len(found), start + len(found))
            if not more:
                size = os.fstat(self._file.fileno()).st_size
                raise OSError(f"{self._file.name} ends at byte {size}: it was cut while it was in use")
            found += more
        return np.frombuffer(found, dtype="<u2")


def _is_headerless(path: Path, size: int) -> bool:
    """Whether this is a train.bin or val.bin of nanoGPT: uint16 tokens from the first byte on, in a folder without meta.json.

    A shard whose header is damaged is not taken for one: most of a header is zeros. ValueError for uint32 tokens.
    """
    if path.name not in ("train.bin", "val.bin") or (path.parent / META).exists() or size < 12 or size % TOKEN_BYTES:
        return False
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if int.from_bytes(head[:4], "little") == MAGIC or not any(head[12:]):
        return False
    if len(head) == HEADER_BYTES and not any(np.frombuffer(head, dtype="<u2")[1::2]):
        raise ValueError(f"{path} holds uint32 tokens; write them as uint16, for which ids must be below 65,536")
    return True


def _read_count(path: Path, file: IO[bytes]) -> int:
    head = file.read(12)
    if len(head) < 12:
        raise ValueError(f"{path}: no room for the header of {HEADER_BYTES} bytes; copy it or prepare it again")
    magic, version, count = np.frombuffer(head, dtype="<i4").tolist()
    if magic != MAGIC:
        raise ValueError(f"{path}: magic at byte 0 is {magic}, a token shard has {MAGIC}; remove the file or prepare again")
    if version != VERSION:
        raise ValueError(f"{path}: version at byte 4 is {version}, this program reads {VERSION}; prepare the data again")
    if count < 0:
        raise ValueError(f"{path}: token count at byte 8 is {count}; copy the file or prepare it again")
    return int(count)


def _problem(values: Any) -> str | None:
    """What is wrong with the parsed `meta.json`, if anything is."""
    if not isinstance(values, dict):
        return "it is no JSON object"
    required = {f.name for f in fields(Meta) if f.default_factory is MISSING}
    if missing := required - values.keys():
        return f"{sorted(missing)[0]!r} is missing"
    if unknown := values.keys() - {f.name for f in fields(Meta)}:
        return f"{sorted(unknown)[0]!r} is unknown"
    for name in ("tokenizer", "source", "revision", "corpus_sha256"):
        if not isinstance(values[name], str):
            return f"{name!r} is no text"
    for name in ("tokens", "bytes", "documents"):
        counts = values[name]
        if not isinstance(counts, dict) or counts.keys() != {"train", "val"} or not all(map(_is_count, counts.values())):
            return f"{name!r} does not count train and val"
    if not _is_count(values["vocab_size"]) or not 1 <= values["vocab_size"] <= 1 << 16:
        return "'vocab_size' does not fit uint16 tokens"
    offsets = values["val_document_offsets"]
    if not isinstance(offsets, list) or not all(map(_is_count, offsets)) or offsets != sorted(set(offsets)):
        return "'val_document_offsets' do not rise"
    if offsets and offsets[-1] >= values["tokens"]["val"]:
        return "'val_document_offsets' go beyond the validation tokens"
    shards = values["shards"]
    if not isinstance(shards, dict) or not all(_is_shard_name(k) and isinstance(v, str) for k, v in shards.items()):
        return "'shards' does not map plain *.bin file names to sha256"
    if not all(isinstance(sums, list) and all(map(_is_count, sums)) for sums in _values(values.get("checksums", {}))):
        return "'checksums' does not map file names to checksums"
    if not _is_count(values.get("skipped", 0)):
        return "'skipped' is no count"
    notes = values.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        return "'notes' are no texts"
    return next(
        (f"{name!r} is no JSON object" for name in ("settings", "expected") if not isinstance(values.get(name, {}), dict)), None
    )


def _values(table: Any) -> list[Any]:
    """The values of a JSON object; of anything else one value, which is no list."""
    return list(table.values()) if isinstance(table, dict) else [None]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_shard_name(name: str) -> bool:
    return name.endswith(".bin") and name == Path(name).name and "\\" not in name
