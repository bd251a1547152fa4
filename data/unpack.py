"""Packed files as streams of bytes: .gz, .bz2, .xz and .zst, read forward in bounded memory."""

import bz2
import gzip
import io
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from data import part

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
XZ_MEMORY = 1 << 28  # xz -9 needs 65 MB; a header can ask for 4 GB


def inner_suffix(path: Path) -> str:
    """The suffix of what is inside: .jsonl for a.jsonl.gz, in lower case."""
    return Path(path.stem if path.suffix.lower() in SUFFIXES else path.name).suffix.lower()


def open_unpacked(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where its suffix says that it is packed."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.open(path))
    if suffix == ".bz2":
        return io.BufferedReader(bz2.open(path))
    if suffix == ".xz":
        return io.BufferedReader(_Xz(path))
    if suffix == ".zst":
        # pyarrow and not zstandard: that one takes a file that was cut short for a whole one, and gives what there is.
        from pyarrow import CompressedInputStream, OSFile

        return io.BufferedReader(CompressedInputStream(OSFile(str(path)), "zstd"))
    return path.open("rb")


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, with their ends. ValueError for a line too long, or a file that unpacks to too much."""
    size, taken = path.stat().st_size, 0
    with part.readable(str(path)), open_unpacked(path) as file:
        while line := file.readline(part.DOCUMENT_BYTES + 1):
            taken += len(line)
            if len(line) > part.DOCUMENT_BYTES:
                problem = f"{path}: a line is longer than {part.DOCUMENT_BYTES} bytes"
                raise ValueError(f"{problem}; cut the document or leave it out")
            part.refuse_bomb(str(path), taken, size)
            yield line


class _Xz(io.RawIOBase):
    """lzma.open with a bound on memory: a header can ask for a dictionary of 4 GB."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._unpack = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._unpack.eof:  # streams may follow each other
                rest = self._unpack.unused_data or self._file.read(1 << 16)
                if not rest.strip(b"\0"):
                    return 0
                self._unpack = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            else:
                rest = self._file.read(1 << 16) if self._unpack.needs_input else b""
                if not rest and self._unpack.needs_input:
                    if self._begun:
                        raise EOFError("it ends before its end-of-stream marker")
                    return 0
            self._begun = True
            data = self._unpack.decompress(rest, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
