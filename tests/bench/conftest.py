"""What a benchmark's own code does is tested, not Inductor and not the start of its processes: both are quick here."""

import functools
import multiprocessing

import pytest
import torch

from tests.runs import forkserver


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced and run by AOTAutograd without Inductor's code; new processes are forked."""
    context = forkserver()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: context)
