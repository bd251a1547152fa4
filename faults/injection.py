"""What goes wrong inside a process: it dies, or the system refuses it something, at a call that is counted."""

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WRITING = ("fsync", "replace", "unlink", "rmdir", "mkdir")
WRITE_CALLS = {"x86_64": (1, 18), "aarch64": (64, 68)}  # the numbers of write and pwrite64


@dataclass(frozen=True)
class DieAt:
    """SIGKILL before, or after, the `call`-th of the system calls by which files are made whole and removed."""

    call: int
    after: bool = False

    def __call__(self) -> None:
        count = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == self.call and not self.after:
                    os.kill(os.getpid(), signal.SIGKILL)
                value = original(*arguments, **named)
                if count == self.call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return value

            return call

        for name in WRITING:
            setattr(os, name, counted(getattr(os, name)))


@dataclass(frozen=True)
class FailAt:
    """From the `call`-th on, a function of `os` raises OSError with this error number."""

    function: str
    call: int
    error: int

    def __call__(self) -> None:
        original, count = getattr(os, self.function), 0

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count >= self.call:
                raise OSError(self.error, os.strerror(self.error))
            return original(*arguments, **named)

        setattr(os, self.function, call)


@dataclass(frozen=True)
class ReplaceFails:
    """os.replace onto a path that ends so raises OSError with this error number, or kills the process where that is 0."""

    ending: str
    error: int

    def __call__(self) -> None:
        original = os.replace

        def replace(source: Any, target: Any, **named: Any) -> None:
            if str(target).endswith(self.ending):
                if not self.error:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(self.error, os.strerror(self.error), str(target))
            original(source, target, **named)

        os.replace = replace  # type: ignore[assignment]


@dataclass(frozen=True)
class FailWrites:
    """write(2) of `size` bytes or more fails with this error, in whatever library calls it: a filter of Linux's seccomp."""

    size: int
    error: int

    def __call__(self) -> None:
        write, pwrite = WRITE_CALLS[platform.machine()]
        load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06  # of the classic BPF instruction set
        number, count = 0, 32  # offsets in struct seccomp_data: the call, and the low half of its third argument
        program = (
            (load, 0, 0, number),
            (equal, 1, 0, write),
            (equal, 0, 3, pwrite),
            (load, 0, 0, count),
            (at_least, 0, 1, self.size),
            (answer, 0, 0, 0x0005_0000 | self.error),  # SECCOMP_RET_ERRNO
            (answer, 0, 0, 0x7FFF_0000),  # SECCOMP_RET_ALLOW
        )
        code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
        buffer = ctypes.create_string_buffer(code, len(code))
        filters = struct.pack("@HP", len(program), ctypes.addressof(buffer))
        libc, no_new_privileges, set_seccomp, by_filter = ctypes.CDLL(None, use_errno=True), 38, 22, 2
        for arguments in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, by_filter, ctypes.c_char_p(filters), 0, 0)):
            if libc.prctl(*arguments):
                raise OSError(ctypes.get_errno(), "this kernel filters no system calls")
