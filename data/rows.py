"""Rows of JSON and CSV files, plain or packed: one field of text, a row at a time."""

import csv
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data import part
from data.part import Part, choose_field, readable, refuse_bomb
from data.unpack import inner_suffix, lines, open_unpacked

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
BLOCK = 1 << 20
_BETWEEN = re.compile(r"[\s,]*")


def open_rows(path: Path, asked: str = "") -> Part:
    """The documents of a .json, .jsonl, .ndjson, .csv or .tsv file. Every row is read once here: a bad one shows now."""
    rows = partial(objects, path)
    field = ""
    for _, first in rows():
        texts = [name for name, value in first.items() if isinstance(value, str)]
        field = choose_field(str(path), list(first), texts, asked)
        break

    def read(start: int) -> Iterator[str | None]:
        for number, (where, row) in enumerate(rows()):
            if number >= start:
                yield _text(path, where, row.get(field), field)

    return Part(sum(1 for _ in read(0)), read, field)


def objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of such a file: where each is ("line 3"), and its fields. Raises ValueError at the first bad one."""
    suffix = inner_suffix(path)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, "\t" if suffix == ".tsv" else ",")
    return _array_rows(path) if suffix == ".json" and _is_array(path) else _line_rows(path)


def _text(path: Path, where: str, value: Any, field: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{path}: {where} has no text in {field!r} but {str(value)[:40]!r}; repair or remove it")
    return value


def _line_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: line {number} is not JSON ({error}); repair or remove the line") from error
        yield f"line {number}", _object(path, f"line {number}", row)


def _array_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    decoder = json.JSONDecoder()
    taken, number = 0, 0
    with readable(str(path)), open_unpacked(path) as file, io.TextIOWrapper(file, "utf-8-sig") as text:
        buffer, place = text.read(BLOCK), 0
        place = buffer.index("[") + 1
        while True:
            place = _BETWEEN.match(buffer, place).end()  # type: ignore[union-attr]
            if buffer.startswith("]", place):
                return
            try:
                row, end = decoder.raw_decode(buffer, place)
            except (ValueError, RecursionError):  # wrong, or not whole yet
                row, end = None, len(buffer)
            if end < len(buffer):
                yield f"item {number}", _object(path, f"item {number}", row)
                place, number = end, number + 1
                continue
            buffer, place = buffer[place:], 0
            more = text.read(max(BLOCK, len(buffer)))
            taken += len(more)
            refuse_bomb(str(path), taken, path.stat().st_size)
            if not more or len(buffer) > part.DOCUMENT_BYTES:
                raise ValueError(f"{path}: item {number} is not JSON, is too long, or the array has no end; repair the file")
            buffer += more


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(part.DOCUMENT_BYTES)
    decoded = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(lines(path)))
    reader = csv.reader(decoded, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for row in reader:
            if len(row) not in (0, len(header)):
                raise ValueError(f"{path}: line {reader.line_num} has {len(row)} fields, the first {len(header)}; repair it")
            if row:
                yield f"line {reader.line_num}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} is not CSV ({error}); repair the file") from None


def _is_array(path: Path) -> bool:
    with readable(str(path)), open_unpacked(path) as file:
        return file.read(BLOCK).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _object(path: Path, where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f'{path}: {where} is no object; each row is one such as {{"text": "..."}}')
    return row
