"""Writing files that are either whole or not there: the one atomic writer, of every package above."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """`write(temporary)` makes a file or a folder beside `path`; it is fsynced and renamed to `path`.

    After a crash at any moment `path` is the old state or the new one. OSError (a full disk, say) leaves the old one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        write(temporary)
        for part in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
            sync(part)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Atomically write a file."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Atomically write a text file."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, by_line: str = "") -> None:
    """Atomically write indented JSON. The list `by_line` of an object comes last, an item a line: versions differ by lines."""
    if not by_line:
        write_text(path, json.dumps(value, indent=1) + "\n")
        return
    head = json.dumps({name: item for name, item in value.items() if name != by_line}, indent=1)
    lines = ",\n".join(json.dumps(item, separators=(",", ":")) for item in value[by_line])
    write_text(path, f'{head[:-2]},\n "{by_line}": [\n{lines}\n]\n}}\n')


def write_tensors(path: Path, tensors: "dict[str, Tensor]") -> None:
    """Atomically write a safetensors file. A full disk is an OSError here too."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    except SafetensorError as error:  # what the library makes of an OSError
        free = shutil.disk_usage(path.parent).free
        raise OSError(f"{path} cannot be written ({error}); {free:,} bytes are free there") from error


def append(path: Path) -> BinaryIO:
    """Open a log to append to; its folder is made. Raises ValueError where one of them is a link: it would write elsewhere."""
    for part in (path.parent, path):
        if part.is_symlink():
            raise ValueError(f"{part} is a symbolic link, which this program would write through; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; a symbolic link goes, what it points to stays."""
    if path.is_dir() and not path.is_symlink():
        # Renamed first, so that a folder half removed is never taken for a whole one.
        doomed = (
            path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.removed.tmp") if not path.name.endswith(".tmp") else path
        )
        if doomed != path:
            os.replace(path, doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder that is this process's alone."""
    for leftover in folder.glob(".*.[0-9]*.tmp"):
        remove(leftover)


def sync(path: Path) -> None:
    """fsync a file, or a folder's entries where the system can (Windows cannot open folders)."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: OSError) -> str:
    """What the system refused, and for which file, in one line."""
    return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
