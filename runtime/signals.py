"""Asked to stop: SIGTERM, SIGINT, SLURM's SIGUSR1 and a closed terminal's SIGHUP, acted on between two steps or batches."""

import signal
import threading
from types import FrameType, TracebackType

from runtime.distributed import Processes

# Windows has no SIGUSR1 and no SIGHUP.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class StoppedError(Exception):
    """A stop signal reached some rank; every rank raises it at the same place."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that the signal killed."""
        return 128 + int(self.number)


class StopSignals:
    """While entered, notes the first stop signal in `received`; a second SIGINT interrupts at once, as Ctrl-C twice should."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def counts(self) -> list[int]:
        """One 0 or 1 per stop signal; summed over ranks, every rank knows what any of them was asked."""
        return [int(self.received == number) for number in STOP_SIGNALS]

    def check(self, processes: Processes) -> None:
        """Raises StoppedError on every rank where any of them has been asked to stop. Every rank calls it equally often."""
        if stop := first_of(processes.sum_integers(self.counts())):
            raise stop

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in STOP_SIGNALS:
                # nohup ignores SIGHUP for the program that it starts.
                if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)


def first_of(counts: list[int]) -> StoppedError | None:
    """The first stop signal that some rank has, by the sums of `StopSignals.counts` over all ranks."""
    return next((StoppedError(number) for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), None)
