"""One process at a time in a folder: the second is told who holds it."""

import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[Callable[[], None]]:
    """Holds the lock file of a folder; ValueError naming owner and start time while another process holds it.

    The operating system keeps the lock, so that of a process that died is free at once, whatever its file says. Some network
    file systems keep none. There a second process writes its own name into the file, and the function that this yields, called
    before each write to the folder, raises OSError.
    """
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link, which this program would write through; remove it")
    with path.open("a+", encoding="utf-8") as file:
        if not _acquire(file):
            file.seek(0)
            owner = " ".join(file.read(500).split()) or "another process"
            raise ValueError(f"{folder} is in use by {owner}; wait until it ends, or choose another folder")
        file.seek(0)
        file.truncate()
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        mine = f"process {os.getpid()} on {socket.gethostname()} since {started} ({secrets.token_hex(4)})"
        file.write(mine)
        file.flush()

        def check() -> None:
            """The file is opened again: what another machine wrote shows no earlier."""
            if path.is_file() and (owner := path.read_text(encoding="utf-8", errors="replace")[:500]) != mine:
                by = " ".join(owner.split()) or "another process"
                raise OSError(f"{folder} was taken by {by} while this process wrote in it; end one of the two")

        try:
            yield check
        finally:
            file.seek(0)
            if file.read() == mine:
                file.truncate(0)


def _acquire(file: TextIO) -> bool:
    """Takes the lock of an open file unless another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
