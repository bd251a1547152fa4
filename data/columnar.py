"""Rows of parquet and Arrow files: one column of text, a batch at a time."""

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from data import part
from data.part import BATCH_ROWS, Part, choose_field, readable, refuse_bomb

_HEADER_BYTES = 1 << 20  # of a page, with the statistics in it
_DELTA_BYTE_ARRAY = 7  # encoding in which a value is a number of bytes of the one before it, and what follows them


def open_parquet(name: str, opener: Callable[[], IO[bytes]], asked: str = "") -> Part:
    """The rows of a parquet file's text column."""
    from pyarrow.parquet import ParquetFile

    def read(start: int) -> Iterator[str | None]:
        with readable(name), opener() as file:
            footer = ParquetFile(file).metadata
            pages: list[_Page] = []
            for index in range(footer.num_row_groups):
                pages += _pages(file, footer.row_group(index), column)
                refuse_bomb(name, sum(page.unpacked for page in pages), size)
            # As a dictionary, or one long string that stands for every row would be copied for each row of a batch. Where the
            # reader cannot do that, it gets as many rows as strings as long as the longest page leave room for.
            is_delta = any(page.encoding == _DELTA_BYTE_ARRAY for page in pages)
            longest = max([1, *(page.unpacked for page in pages if is_delta)])
            batch_rows = max(1, min(BATCH_ROWS, part.DOCUMENT_BYTES // longest))
            table = ParquetFile(file, metadata=footer, read_dictionary=[] if is_delta else [column])
            groups: list[int] = []
            row = start
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if start >= rows and not groups:
                    start -= rows
                else:
                    groups.append(group)
            taken = 0
            for batch in table.iter_batches(batch_rows, row_groups=groups, columns=[column]):
                for text in _strings(batch.column(0)[start:], name, row):
                    row += 1
                    taken += len(text or "")
                    refuse_bomb(name, taken, size)
                    yield text
                start = max(0, start - batch.num_rows)

    with readable(name), opener() as file, ParquetFile(file) as table:
        size = file.seek(0, io.SEEK_END)
        column = _text_column(name, table.schema_arrow, asked)
        groups = [table.metadata.row_group(index) for index in range(table.num_row_groups)]
        chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
        refuse_bomb(name, sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column), size)
        return Part(table.metadata.num_rows, read, column)


class _Page(NamedTuple):
    """What the header of a page says: bytes that it unpacks to, and the encoding of its values, -1 where it has none."""

    unpacked: int
    encoding: int


def _pages(file: IO[bytes], group: Any, column: str) -> Iterator[_Page]:
    """The pages of a column. The reader makes room for as many bytes as they say, whatever the footer says.

    Layout: PageHeader of parquet.thrift before each page; its fields 2 and 3 are the sizes unpacked and packed, 5 and 8 the
    headers of data pages of version 1 and 2.
    """
    for chunk in (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column):
        first = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
        at = chunk.data_page_offset if first is None else first
        end = at + chunk.total_compressed_size
        while at < end:
            file.seek(at)
            try:
                header, length = _thrift(file.read(min(_HEADER_BYTES, end - at)), 0)
            except IndexError:
                raise struct.error(f"the header of its page at byte {at} is cut") from None
            unpacked, packed = header.get(2), header.get(3)
            if type(unpacked) is not int or type(packed) is not int or min(unpacked, packed) < 0:
                raise struct.error(f"the page at byte {at} has no sizes")
            yield _Page(unpacked, _encoding(header))
            at += length + packed


def _encoding(header: dict[int, Any]) -> int:
    """Of a data page's values: field 2 of its header in version 1, field 4 in version 2."""
    for version, place in ((5, 2), (8, 4)):
        if isinstance(header.get(version), dict) and isinstance(header[version].get(place), int):
            return int(header[version][place])
    return -1


def _thrift(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol as field number -> value, and where it ends. IndexError where it is cut."""
    if depth > 4:
        raise struct.error("no page header is nested as deep as its")

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def value(kind: int) -> Any:
        nonlocal at
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            number = varint()
            return (number >> 1) ^ -(number & 1)
        if kind == 12:
            found, at = _thrift(data, at, depth + 1)
            return found
        if kind not in (3, 7, 8):  # lists and maps are in no page header
            raise struct.error(f"its page header holds a field of type {kind}")
        length = varint() if kind == 8 else {3: 1, 7: 8}[kind]
        at += length
        return data[at - length : at]

    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        kind, step = data[at] & 15, data[at] >> 4
        at += 1
        number = number + step if step else value(5)
        fields[number] = value(kind)
    return fields, at + 1


def open_arrow(path: Path, asked: str = "") -> Part:
    """The rows of an Arrow file, in the streaming form that `datasets` caches or the random-access form around it."""
    from pyarrow import OSFile, ipc

    def batches() -> Iterator[Any]:
        with readable(str(path)), OSFile(str(path)) as file:  # not mapped: a file that is cut meanwhile would end the process
            begin = 8 if file.read(6) == b"ARROW1" else 0
            file.seek(begin)
            unpacked = 0
            for message in ipc.MessageReader.open_stream(file):
                unpacked += _unpacked_bytes(message)
                refuse_bomb(str(path), unpacked, path.stat().st_size)
            file.seek(begin)
            yield from ipc.open_stream(file)

    def read(start: int) -> Iterator[str | None]:
        taken, row = 0, start
        for batch in batches():
            for first in range(start, batch.num_rows, BATCH_ROWS):
                for text in _strings(batch.column(column)[first : first + BATCH_ROWS], path.name, row):
                    row += 1
                    taken += len(text or "")
                    refuse_bomb(str(path), taken, path.stat().st_size)
                    yield text
            start = max(0, start - batch.num_rows)

    column, count = "text", 0
    for batch in batches():
        column = _text_column(path.name, batch.schema, asked)
        with readable(str(path)):
            batch.column(column).validate(full=True)  # a stranger's offsets may point anywhere
        count += batch.num_rows
    return Part(count, read, column)


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


def _text_column(name: str, schema: Any, asked: str) -> str:
    """The column to read, see `choose_field`; ValueError where it holds no text."""
    texts = [field.name for field in schema if _holds_text(field.type)]
    column = choose_field(name, [field.name for field in schema], texts, asked)
    kind = schema.field(column).type
    if not _holds_text(kind) and not str(kind).endswith("binary"):
        raise ValueError(f"{name}: field {column!r} is {kind}, no text; name another one: --text_field {', '.join(texts)}")
    return column


def _holds_text(kind: Any) -> bool:
    return any(
        f"{opening}{text}" in (str(kind), str(kind).split(",")[0])
        for opening in ("", "dictionary<values=")
        for text in ("string", "large_string", "string_view")
    )


def _strings(column: Any, name: str, row: int) -> Iterator[str | None]:
    """The texts of an array whose first element is that row of the file."""
    for number, value in enumerate(column, row):
        text = value.as_py()
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{name}: row {number} is not UTF-8 text ({error}); convert it or leave it out") from None
        if text is not None and len(text) > part.DOCUMENT_BYTES:
            raise ValueError(f"{name}: row {number} is longer than {part.DOCUMENT_BYTES} characters; cut it or leave it out")
        yield text
