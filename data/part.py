"""What a source of documents is, and what a stranger's file may take in memory and come to."""

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

DOCUMENT_BYTES = 1 << 26  # a longer line is refused; a longer text file is read in parts of about this size, cut at line ends
EXPANSION = 200  # unpacked over packed size, past the first DOCUMENT_BYTES; text packs 3 to 20 times, a zip bomb 1,000 times
BATCH_ROWS = 256


@dataclass(frozen=True)
class Part:
    """Documents in an order: how many, and an iterator over them from a number on. A row without text is None, and counts.

    `field` is the column or JSON field that they come from; empty for plain text.
    """

    count: int
    read: Callable[[int], Iterator[str | None]]
    field: str = ""


def refuse_bomb(name: str, unpacked: int, size: int) -> None:
    """Raises ValueError where a file of `size` bytes comes to more than text does."""
    if unpacked > DOCUMENT_BYTES + EXPANSION * size:
        raise ValueError(f"{name} unpacks to over {EXPANSION} times its size; unpack it yourself if you trust it")


def choose_field(name: str, fields: list[str], texts: list[str], asked: str) -> str:
    """The field that is asked for, else `text`, else the only one of `texts`, which hold text. ValueError names them all."""
    if asked:
        if asked in fields:
            return asked
        raise ValueError(f"{name} has no field {asked!r}; it has {_listed(fields)}: give one of them as --text_field")
    if "text" in fields:
        return "text"
    if len(texts) == 1:
        return texts[0]
    raise ValueError(f"{name} has no field 'text' and {len(texts)} fields of text; name one: --text_field {_listed(fields)}")


def _listed(fields: list[str]) -> str:
    return ", ".join(fields[:8]) + (", ..." if len(fields) > 8 else "") or "no fields"


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns what a damaged file makes its reader raise into a ValueError that names the file."""
    from lzma import LZMAError

    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError, EOFError, LZMAError, zlib.error, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is damaged ({error}); fetch it again, or leave it out") from error
