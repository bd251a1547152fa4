"""One process at a time in a folder: the second is told who holds it."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Holds the lock file of a folder; ValueError naming owner and start time while another process holds it.

    The operating system keeps the lock, so that of a process that died is free at once, whatever its file says.
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
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield
        finally:
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
