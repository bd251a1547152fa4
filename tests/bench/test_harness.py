"""Interleaving, ratios, files and their comparison."""

import json
import math
from pathlib import Path

import pytest
import torch

from bench import harness

CPU = torch.device("cpu")


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    seconds = harness.interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, CPU)
    assert calls[-6:] == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(("seconds", "taken"), [(math.inf, 9), (65.0, 7), (25.0, 3), (0.0, 3)])
def test_turns_end_with_the_time(seconds: float, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock)
    for turn in harness.turns(9, seconds):
        last, clock = turn, clock + 10.0
    assert last + 1 == taken


def test_ratio_is_of_the_same_round() -> None:
    assert harness.ratio([2.0, 20.0, 9.0], [1.0, 10.0, 3.0]) == 2.0


def test_copying_has_a_speed() -> None:
    assert 1e7 < harness.copy_bandwidth(CPU, megabytes=4) < 1e13


def test_two_files_are_compared_row_by_row(tmp_path: Path) -> None:
    rows = [{"activation": "a", "ratio": 2.0}, {"activation": "b", "ratio": 1.0}]
    harness.save(tmp_path / "old.json", rows, CPU, note="x")
    saved = json.loads((tmp_path / "old.json").read_text())
    assert saved["rows"] == rows
    assert {"machine", "commit", "note"} <= saved.keys()
    lines = harness.compare(
        tmp_path / "old.json", [{"activation": "a", "ratio": 3.0}, {"activation": "c", "ratio": 1.0}], ["activation"], "ratio"
    )
    assert len(lines) == 1
    assert lines[0].endswith("x1.50")
