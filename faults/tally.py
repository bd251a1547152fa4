"""Counting: faults injected, faults survived, and faults that lost data."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class NotSurvivedError(Exception):
    """The program did not do what it should under a fault; the text says what it did."""


class DataLostError(NotSurvivedError):
    """Something that had been written is gone or differs."""


def expect(condition: object, told: str) -> None:
    """Raise NotSurvivedError unless the condition holds."""
    if not condition:
        raise NotSurvivedError(told)


def keep(condition: object, told: str) -> None:
    """Raise DataLostError unless the condition holds."""
    if not condition:
        raise DataLostError(told)


@dataclass
class Tally:
    """What one part of the suite has injected, and what came of it."""

    full: bool = True
    """Whether all of it is wanted, or the form of seconds."""
    deadline: float = float("inf")
    """time.monotonic() after which nothing more is begun."""
    planned: int = 0
    injected: int = 0
    survived: int = 0
    lost: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def plan(self, full: int, short: int) -> int:
        """How many faults are wanted, of those that are alike."""
        wanted = full if self.full else short
        self.planned += wanted
        return wanted

    @property
    def has_time(self) -> bool:
        """Whether another fault may begin."""
        return time.monotonic() < self.deadline

    def inject(self, count: int = 1) -> None:
        """Count faults that do not end with the block that made them; `fault` counts its own."""
        self.injected += count
        self.survived += count

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """One fault: survived where the block ends well."""
        self.injected += 1
        with self.judge(name, 0):
            yield
            self.survived += 1

    @contextmanager
    def judge(self, name: str, count: int) -> Iterator[None]:
        """What `count` faults, injected and so far taken for survived, have come to."""
        try:
            yield
        except NotSurvivedError as error:
            self._fail(name, str(error), count)
            self.lost += isinstance(error, DataLostError)
        except Exception as error:  # the suite goes on to the other faults, and ends with exit code 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._fail(name, f"{type(error).__name__} at {place.filename}:{place.lineno}: {error}", count)

    def _fail(self, name: str, told: str, count: int) -> None:
        self.survived -= count
        self.failures.append(f"{name}: {' '.join(told.split())[:1500]}")
