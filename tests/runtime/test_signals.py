"""A stop signal is noted, not acted on; the second SIGINT interrupts."""

import os
import signal

import pytest

from runtime.signals import STOP_SIGNALS, StopSignals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_noted_once_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.counts() == [0, 0, 0]
        os.kill(os.getpid(), number)
        assert signals.received is number
        assert signals.counts() == [int(n == number) for n in STOP_SIGNALS]
    assert signal.getsignal(number) == before


def test_the_second_interrupt_interrupts() -> None:
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
