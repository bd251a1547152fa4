"""W&B is a guest: none of its troubles ends a run or holds it up, and a run's identity is its own."""

import json
import logging
import shutil
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from config.schema import Config
from runtime import weights_and_biases
from tests.runs import rows, train_here


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("no network\nat all")


def leave(*_: object, **__: object) -> None:
    raise SystemExit(1)


def wandb_with(monkeypatch: pytest.MonkeyPatch, **changed: Callable[..., object]) -> list[dict[str, Any]]:
    """W&B's module replaced by one that works but for what is changed; the settings of each init."""
    inits: list[dict[str, Any]] = []
    run = types.SimpleNamespace(**{"log": lambda row, step: None, "finish": lambda: None} | changed)
    fake = types.ModuleType("wandb")
    fake.init = lambda **settings: inits.append(settings) or changed.get("init", lambda: run)()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return inits


@pytest.mark.parametrize("trouble", [fail, leave])
@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_any_error_of_it_is_one_line(
    small: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str, trouble: Callable[..., object]
) -> None:
    wandb_with(monkeypatch, **{where: trouble})
    config = train_here(small, wandb="online", max_steps=3)
    assert [row["step"] for row in rows(config) if "train_loss" in row] == [1, 2, 3]
    (told,) = [record.getMessage() for record in caplog.records if "W&B" in record.getMessage()]
    kind = "RuntimeError: no network" if trouble is fail else "SystemExit: 1"
    assert told == f"W&B gets no more rows ({where}: {kind}); the run goes on, and metrics.jsonl has them all"


def test_not_installed_is_one_line(small: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    train_here(small, wandb="offline", max_steps=2)
    (told,) = [record.getMessage() for record in caplog.records if "W&B" in record.getMessage()]
    assert "import: ModuleNotFoundError" in told


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_network_that_hangs_holds_nobody_up(
    small: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    answer = threading.Event()
    wandb_with(monkeypatch, **{where: lambda *_, **__: answer.wait()})
    monkeypatch.setattr(weights_and_biases.Board.finish, "__defaults__", (0.05,))
    train_here(small, wandb="online", max_steps=2)
    assert weights_and_biases.hangs()
    assert "it did not finish within 0.05 s" in caplog.text
    answer.set()


def test_rows_that_wait_are_bounded(small: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer, said = threading.Event(), []
    wandb_with(monkeypatch, log=lambda *_, **__: answer.wait())
    monkeypatch.setattr(weights_and_biases, "_ROWS", 3)
    board = weights_and_biases.Board(small, tmp_path, "0" * 16, said.append)
    for step in range(10):
        board.log({"step": step})
    answer.set()
    assert said == ["W&B gets no more rows (3 rows wait for the network); the run goes on, and metrics.jsonl has them all"]


def test_a_run_s_identity_is_its_own_and_not_its_path_s(
    small: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    inits = wandb_with(monkeypatch)
    train_here(small, wandb="online", max_steps=2, lr_decay_steps=12)
    moved = tmp_path / "moved"
    Path(small.out_dir).rename(moved)
    train_here(small, wandb="online", max_steps=3, lr_decay_steps=12, out_dir=str(moved))
    train_here(small, wandb="online", max_steps=2, lr_decay_steps=12)  # another run where the first one was
    first, resumed, other = (settings["id"] for settings in inits)
    assert first == resumed == json.loads((moved / "run.json").read_text())["wandb_id"]
    assert other != first
    shutil.rmtree(moved)
    assert not caplog.records
