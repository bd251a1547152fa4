"""Where documents come from: files in several formats, read one document at a time, from any document on.

Files are strangers' data: what a line or a packed file takes in memory is bounded before it is believed.
"""

import codecs
import hashlib
import io
import json
import logging
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.tokenizer import well_formed

DOCUMENT_BYTES = 1 << 26  # a longer line is refused; a longer text file is read in parts of about this size, cut at line ends
EXPANSION = 200  # unpacked over packed size, past the first DOCUMENT_BYTES; text packs 3 to 20 times, a zip bomb 1,000 times
BATCH_ROWS = 256
JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class Part:
    """Documents in an order: how many, and an iterator over them from a number on."""

    count: int
    read: Callable[[int], Iterator[str]]


def read_documents(parts: Sequence[Part], start: int = 0) -> Iterator[str]:
    """The documents of the parts in order, from document `start` on, without reading the parts before it."""
    for part in parts:
        if start < part.count:
            yield from map(well_formed, part.read(start))
        start = max(0, start - part.count)


def find_files(inputs: Iterable[str | Path]) -> list[Path]:
    """The files named and those inside the folders named, sorted in each; hidden ones and symbolic links inside are skipped."""
    found: list[Path] = []
    for given in map(Path, inputs):
        if given.is_dir():
            inside = (path for path in given.rglob("*") if path.is_file() and not path.is_symlink())
            shown = (path for path in inside if not any(part.startswith(".") for part in path.relative_to(given).parts))
            found += sorted(shown, key=Path.as_posix)
        elif given.is_file():
            found.append(given)
        else:
            raise ValueError(f"--input {given} does not exist; give files or folders")
    if not found:
        raise ValueError(f"--input {' '.join(map(str, inputs))} holds no file; give files or folders")
    return found


def drop_binaries(files: Sequence[Path], named: Iterable[str | Path] = ()) -> list[Path]:
    """The files without those that were met in a folder, not named, and are no UTF-8 text; says how many."""
    certain = set(map(Path, named))
    kept = [path for path in files if path in certain or not is_text(path) or _find_bad_byte(path) is None]
    if len(kept) < len(files):
        first = next(path for path in files if path not in set(kept))
        logging.getLogger(__name__).warning("skipped %d files that are not UTF-8, %s first", len(files) - len(kept), first)
    return kept


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of names, sizes and times of change: tells whether the inputs are still those of an earlier run."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def open_file(path: Path) -> Part:
    """The documents of a file by its suffix: rows of parquet and arrow, lines of jsonl (.gz, .zst), or text as it is."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return open_parquet(str(path), lambda: path.open("rb"))
    if name.endswith(".arrow"):
        return _open_arrow(path)
    if name.endswith(JSONL):
        return Part(sum(1 for _ in _lines(path)), lambda start: _read_jsonl(path, start))
    return open_text(path)


def is_text(path: Path) -> bool:
    """Whether a file's suffix makes it a text as it is, not rows or lines of them."""
    return not path.name.lower().endswith((".parquet", ".arrow", *JSONL))


def open_parquet(name: str, opener: Callable[[], IO[bytes]]) -> Part:
    """The rows of a parquet file's text column."""
    from pyarrow.parquet import ParquetFile

    def read(start: int) -> Iterator[str]:
        # As a dictionary, or one long string that stands for every row would be copied for each row of a batch.
        with _readable(name), opener() as file, ParquetFile(file, read_dictionary=[column]) as table:
            groups: list[int] = []
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if start >= rows and not groups:
                    start -= rows
                else:
                    groups.append(group)
            taken = 0
            for batch in table.iter_batches(BATCH_ROWS, row_groups=groups, columns=[column]):
                for text in _strings(batch.column(0)[start:], name):
                    taken += len(text)
                    _refuse_bomb(name, taken, size)
                    yield text
                start = max(0, start - batch.num_rows)

    with _readable(name), opener() as file, ParquetFile(file) as table:
        size = file.seek(0, io.SEEK_END)
        column = _text_column(name, table.schema_arrow)
        groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
        chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
        _refuse_bomb(name, sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column), size)
        return Part(table.metadata.num_rows, read)


def open_text(path: Path, first: int = 0, last: int | None = None) -> Part:
    """Bytes first to last of a text file as one document, or as several where they are many, cut at line ends.

    ValueError, naming the position, where it is not UTF-8.
    """
    end = path.stat().st_size if last is None else last
    bad = _find_bad_byte(path)
    if bad is not None:
        raise ValueError(f"{path}: byte {bad} is not UTF-8 text; convert the file (iconv -t utf-8) or leave it out")
    marks = range(first + DOCUMENT_BYTES, end - DOCUMENT_BYTES // 2, DOCUMENT_BYTES)
    edges = [first, *(line_end(path, mark) for mark in marks), end]

    def read(start: int) -> Iterator[str]:
        with path.open("rb") as file:
            file.seek(edges[start])
            for begin, stop in zip(edges[start:], edges[start + 1 :], strict=False):
                yield file.read(stop - begin).decode("utf-8")

    return Part(len(edges) - 1, read)


def line_end(path: Path, position: int) -> int:
    """Where the line at a position of a UTF-8 file ends; where that is far off or the file's end, where the character does."""
    with path.open("rb") as file:
        file.seek(position)
        line = file.readline(DOCUMENT_BYTES // 2)
    if line.endswith(b"\n") and position + len(line) < path.stat().st_size:
        return position + len(line)
    return position + next((i for i, byte in enumerate(line[:4]) if byte & 0xC0 != 0x80), len(line))


def _find_bad_byte(path: Path) -> int | None:
    """The position of the first byte of a file that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return done - pending + error.start
            if not block:
                return None
            done += len(block)


def _read_jsonl(path: Path, start: int) -> Iterator[str]:
    for number, line in enumerate(_lines(path)):
        if number < start:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: document {number} is not JSON ({error}); repair or remove the line") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f'{path}: document {number} has no "text"; each line is an object such as {{"text": "..."}}')
        yield row["text"]


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file that are not blank, unpacked where it is packed."""
    size, taken = path.stat().st_size, 0
    with _readable(str(path)), _open_unpacked(path) as file:
        while line := file.readline(DOCUMENT_BYTES + 1):
            taken += len(line)
            if len(line) > DOCUMENT_BYTES:
                raise ValueError(f"{path}: a line is longer than {DOCUMENT_BYTES} bytes; cut the document or leave it out")
            _refuse_bomb(str(path), taken, size)
            if line.strip():
                yield line


def _open_unpacked(path: Path) -> IO[bytes]:
    codec = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    if codec is None:
        return path.open("rb")
    # pyarrow and not zstandard: that one takes a file that was cut short for a whole one, and gives what there is.
    from pyarrow import CompressedInputStream, OSFile

    return io.BufferedReader(CompressedInputStream(OSFile(str(path)), codec))


def _open_arrow(path: Path) -> Part:
    """The rows of an Arrow file, in the streaming form that `datasets` caches or the random-access form around it."""
    from pyarrow import OSFile, ipc

    def batches() -> Iterator[Any]:
        with _readable(str(path)), OSFile(str(path)) as file:  # not mapped: a file that is cut meanwhile would end the process
            begin = 8 if file.read(6) == b"ARROW1" else 0
            file.seek(begin)
            unpacked = 0
            for message in ipc.MessageReader.open_stream(file):
                unpacked += _unpacked_bytes(message)
                _refuse_bomb(str(path), unpacked, path.stat().st_size)
            file.seek(begin)
            yield from ipc.open_stream(file)

    def read(start: int) -> Iterator[str]:
        taken = 0
        for batch in batches():
            for first in range(start, batch.num_rows, BATCH_ROWS):
                for text in _strings(batch.column(column)[first : first + BATCH_ROWS], path.name):
                    taken += len(text)
                    _refuse_bomb(str(path), taken, path.stat().st_size)
                    yield text
            start = max(0, start - batch.num_rows)

    column, count = "text", 0
    for batch in batches():
        column = _text_column(path.name, batch.schema)
        with _readable(str(path)):
            batch.column(column).validate(full=True)  # a stranger's offsets may point anywhere
        count += batch.num_rows
    return Part(count, read)


def _unpacked_bytes(message: Any) -> int:
    """Bytes that the packed buffers of an Arrow message say they unpack to, before any is unpacked; 0 where none is packed.

    Layout: Message.fbs of the Arrow format; each packed buffer begins with its unpacked length as an int64, -1 for as it is.
    """
    data = memoryview(message.metadata)

    def number(kind: str, at: int) -> int:
        return int(struct.unpack_from(f"<{kind}", data, at)[0])

    def field(table: int, slot: int) -> int:
        """Where a field of a flatbuffers table lies; 0 where it is left out."""
        vtable = table - number("i", table)
        offset = number("H", vtable + 4 + 2 * slot) if 4 + 2 * slot < number("H", vtable) else 0
        return table + offset if offset else 0

    def follow(at: int) -> int:
        return at + number("I", at)

    root = follow(0)
    kind, header = field(root, 1), follow(field(root, 2))
    if data[kind] == 2:  # a dictionary: its second field is a batch
        header = follow(field(header, 1))
    elif data[kind] != 3:  # not a batch either
        return 0
    if not field(header, 3) or not field(header, 2):
        return 0
    buffers = follow(field(header, 2))
    places = [struct.unpack_from("<qq", data, buffers + 4 + 16 * index) for index in range(number("I", buffers))]
    lengths = [struct.unpack_from("<q", message.body, offset)[0] for offset, length in places if length >= 8]
    return sum(max(0, length) for length in lengths)


def _refuse_bomb(name: str, unpacked: int, size: int) -> None:
    """Raises ValueError where a file of `size` bytes comes to more than text does."""
    if unpacked > DOCUMENT_BYTES + EXPANSION * size:
        raise ValueError(f"{name} unpacks to over {EXPANSION} times its size; unpack it yourself if you trust it")


def _text_column(name: str, schema: Any) -> str:
    """The column `text`, or the only one that holds strings."""
    columns = [field.name for field in schema if str(field.type) in ("string", "large_string", "string_view")]
    if "text" in columns:
        return "text"
    if len(columns) != 1:
        raise ValueError(f"{name} has no column 'text' and {len(columns)} columns of strings; rename the one to take to 'text'")
    return str(columns[0])


def _strings(column: Any, name: str) -> Iterator[str]:
    for value in column:
        text = value.as_py()
        if text is None or len(text) > DOCUMENT_BYTES:
            problem = "no text" if text is None else f"more than {DOCUMENT_BYTES} characters"
            raise ValueError(f"{name} has a row with {problem}; remove such rows")
        yield text


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns what a damaged file makes its reader raise into a ValueError that names the file."""
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is damaged ({error}); fetch it again, or leave it out") from error
