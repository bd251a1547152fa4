"""A stop signal is noted, not acted on; the second SIGINT interrupts."""

import os
import signal

import pytest
import torch

from runtime.distributed import Processes
from runtime.signals import STOP_SIGNALS, StoppedError, StopSignals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_noted_once_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.counts() == [0] * len(STOP_SIGNALS)
        os.kill(os.getpid(), number)
        assert signals.received is number
        assert signals.counts() == [int(n == number) for n in STOP_SIGNALS]
    assert signal.getsignal(number) == before


def test_the_second_interrupt_interrupts() -> None:
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_program_that_nohup_started_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_one_rank_was_told_every_rank_raises() -> None:
    processes = Processes(1, 1, 0, torch.device("cpu"))
    with StopSignals() as signals:
        signals.check(processes)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(StoppedError, match="SIGHUP") as caught:
            signals.check(processes)
    assert caught.value.number is signal.SIGHUP
