"""Where documents come from: files in several formats, read one document at a time, from any document on.

Files are strangers' data: what a line or a packed file takes in memory is bounded before it is believed.
"""

import codecs
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from data import part, rows
from data.columnar import open_arrow, open_parquet
from data.part import Part, readable, refuse_bomb
from data.tokenizer import END_OF_TEXT, well_formed
from data.unpack import SUFFIXES, inner_suffix, open_unpacked

COLUMNAR = (".parquet", ".arrow")


def read_documents(parts: Sequence[Part], start: int = 0) -> Iterator[str | None]:
    """The documents of the parts in order, from document `start` on, without reading the parts before it.

    None is a row without text.
    """
    for one in parts:
        if start < one.count:
            for text in one.read(start):
                yield text and well_formed(text)
        start = max(0, start - one.count)


def open_file(path: Path, field: str = "", separator: str | None = None) -> Part:
    """The documents of a file by its suffix: rows of parquet, Arrow, JSON and CSV, or text.

    `field` is the column or JSON field that holds the text. A text is one document, or as many as `separator` makes of it.
    """
    suffix = inner_suffix(path)
    if suffix in COLUMNAR:
        if path.suffix.lower() in SUFFIXES:
            raise ValueError(f"{path} is packed, and a {suffix} file is read at several places; unpack it first")
        return open_arrow(path, field) if suffix == ".arrow" else open_parquet(str(path), lambda: path.open("rb"), field)
    if suffix in rows.SUFFIXES:
        return rows.open_rows(path, field)
    if separator or path.suffix.lower() in SUFFIXES:
        return Part(sum(1 for _ in _stream(path, separator or "")), lambda start: _from(_stream(path, separator or ""), start))
    return open_text(path)


def is_text(path: Path) -> bool:
    """Whether a file's suffix makes it a text, packed or not, and no rows."""
    return inner_suffix(path) not in (*COLUMNAR, *rows.SUFFIXES)


def holds_marker(path: Path) -> bool:
    """Whether the first megabyte of a text holds "<|endoftext|>", as files of many documents do."""
    with readable(str(path)), open_unpacked(path) as file:
        return END_OF_TEXT.encode() in file.read(1 << 20)


def cut_text(path: Path, fraction: float) -> tuple[Part, Part]:
    """A text in two, the second with about that share of it, cut at a line end. ValueError where it is too short."""
    if path.suffix.lower() not in SUFFIXES:
        _check_utf8(path)
        size = path.stat().st_size
        cut = line_end(path, round(size * (1 - fraction)))
        if 0 < cut < size:
            return open_text(path, 0, cut), open_text(path, cut, size)
    else:
        mark = round(sum(len(text) for text in _stream(path, "")) * (1 - fraction))
        first, second = (partial(_half, path, mark, which) for which in (False, True))
        counts = [sum(1 for _ in half()) for half in (first, second)]
        if all(counts):
            return Part(counts[0], lambda start: _from(first(), start)), Part(counts[1], lambda start: _from(second(), start))
    raise ValueError(f"{path} is too short to cut {fraction} off for validation; give more text")


def open_text(path: Path, first: int = 0, last: int | None = None) -> Part:
    """Bytes first to last of a text file as one document, or as several where they are many, cut at line ends.

    ValueError, naming the position, where it is not UTF-8.
    """
    end = path.stat().st_size if last is None else last
    _check_utf8(path)
    marks = range(first + part.DOCUMENT_BYTES, end - part.DOCUMENT_BYTES // 2, part.DOCUMENT_BYTES)
    edges = [first, *(line_end(path, mark) for mark in marks), end]

    def read(start: int) -> Iterator[str | None]:
        with path.open("rb") as file:
            file.seek(edges[start])
            for begin, stop in zip(edges[start:], edges[start + 1 :], strict=False):
                yield file.read(stop - begin).decode("utf-8")

    return Part(len(edges) - 1, read)


def line_end(path: Path, position: int) -> int:
    """Where the line at a position of a UTF-8 file ends; where that is far off or the file's end, where the character does."""
    with path.open("rb") as file:
        file.seek(position)
        line = file.readline(part.DOCUMENT_BYTES // 2)
    if line.endswith(b"\n") and position + len(line) < path.stat().st_size:
        return position + len(line)
    return position + next((i for i, byte in enumerate(line[:4]) if byte & 0xC0 != 0x80), len(line))


def find_bad_byte(path: Path) -> int | None:
    """The position of the first byte of a file that is not UTF-8."""
    size = path.stat().st_size
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with open_unpacked(path) as file:
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
            refuse_bomb(str(path), done, size)


def _check_utf8(path: Path) -> None:
    bad = find_bad_byte(path)
    if bad is not None:
        raise ValueError(_not_utf8(path, bad))


def _not_utf8(path: Path, position: int) -> str:
    with path.open("rb") as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return f"{path}: byte {position} is not UTF-8 text; convert the file (iconv {'-f utf-16 ' * wide}-t utf-8) or leave it out"


def _stream(path: Path, separator: str) -> Iterator[str]:
    """The documents of a text, packed or not, read forward: between separators, without the blanks around them.

    Without a separator the text is one document, or several of about DOCUMENT_BYTES, cut at line ends.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    size, done, held = path.stat().st_size, 0, ""
    with readable(str(path)), open_unpacked(path) as file:
        while True:
            block = file.read(1 << 20)
            pending = len(decoder.getstate()[0])
            try:
                held += decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise ValueError(_not_utf8(path, done - pending + error.start)) from None
            done += len(block)
            refuse_bomb(str(path), done, size)
            if separator:
                *whole, held = held.split(separator)
                yield from (text for text in map(str.strip, whole) if text)
            if len(held) > part.DOCUMENT_BYTES:
                cut = held.rfind("\n") + 1 or len(held)
                yield held[:cut]
                held = held[cut:]
            if not block:
                if held := held.strip() if separator else held:
                    yield held
                return


def _half(path: Path, mark: int, second: bool) -> Iterator[str]:
    """The text of a packed file up to the line end after character `mark`, or from there on."""
    position = 0
    for text in _stream(path, ""):
        end = position + len(text)
        cut = 0 if position > mark else len(text) if end <= mark else text.find("\n", mark - position) + 1 or mark - position
        if half := text[cut:] if second else text[:cut]:
            yield half
        position = end


def _from(texts: Iterator[str], start: int) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number >= start:
            yield text
