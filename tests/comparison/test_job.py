"""One run in its process: trained, then measured; it ends with the process that started it."""

import json
import os
import signal
from pathlib import Path

import pytest

from comparison import job
from config.schema import Config
from faults.runs import ROOT, arguments


def test_a_job_is_train_py_and_a_measure(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(job.PARENT, raising=False)
    monkeypatch.setattr(job.sys, "argv", [])
    argv = [str(ROOT / "config" / "tiny.py"), *arguments(small)]
    assert job.main(argv) == 0
    folder = Path(small.out_dir)
    assert json.loads((folder / "measured.json").read_text()).keys() == {"step", "weights_sha256", "documents", "shapes"}
    assert json.loads((folder / "run.json").read_text())["command"] == ["train.py", *argv]


def test_bad_input_is_train_pys_exit_code(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(job.PARENT, raising=False)
    monkeypatch.setattr(job.sys, "argv", [])
    assert job.main([str(ROOT / "config" / "tiny.py"), "--n_layers", "3"]) == 2
    assert not Path(small.out_dir).exists()


def test_an_orphan_tells_itself_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(job.os, "kill", lambda pid, number: sent.append((pid, number)))
    job._end_with(parent=-1)  # nobody's
    assert sent == [(os.getpid(), signal.SIGTERM)]
