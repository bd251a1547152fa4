"""bench/parts.py: every way of writing a part gives the same gradients, and the command prints all of them."""

import json
from pathlib import Path

import pytest
import torch

from bench import parts


@pytest.mark.parametrize("part", parts.SMALL)
def test_all_ways_agree(part: str) -> None:
    ways = parts.WAYS[part](parts.SMALL[part]["small"], torch.device("cpu"))
    first, *others = [way() for way in ways.values()]
    assert others, "nothing to compare with"
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert (a.float() - b.float()).norm() <= 0.02 * a.float().norm()  # bfloat16 products


def test_memory_is_that_of_the_call() -> None:
    held = parts.peak("attention", (4, 4, 256, 64), "written_out", torch.device("cpu"))
    assert 16 * 256 * 256 * 2 <= held < 2**28  # the weights at least


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "peak", lambda *_: 1)  # a process each
    assert parts.main(["--device", "cpu", "--small", "--rounds", "2", "--json", str(tmp_path / "parts.json")]) == 0
    rows = json.loads((tmp_path / "parts.json").read_text())["rows"]
    assert {(row["part"], row["way"]) for row in rows} >= {("attention", "written_out"), ("loss", "chunks")}
    assert all(row["ms"] > 0 and row["peak_bytes"] >= 0 for row in rows)
    assert "loss, small" in capsys.readouterr().out
