"""Asked to stop: SIGTERM, SIGINT and SLURM's SIGUSR1 are noted here and acted on between two steps."""

import signal
import threading
from types import FrameType, TracebackType

# Exit codes are 128 + the number, as a shell reports a process that the signal killed. Windows has no SIGUSR1.
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


class StopSignals:
    """While entered, notes the first stop signal in `received`; a second SIGINT interrupts at once, as Ctrl-C twice should."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def counts(self) -> list[int]:
        """One 0 or 1 per stop signal; summed over ranks, every rank knows what any of them was told."""
        return [int(self.received == number) for number in STOP_SIGNALS]

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
