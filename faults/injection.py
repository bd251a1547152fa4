"""What goes wrong inside a process: it dies, or the system refuses it something, at a call that is counted."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WRITING = ("fsync", "replace", "unlink", "rmdir", "mkdir")


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
