"""The moments of a run are those of its lines, and the second run finds the first one's cache."""

import json
import math
from pathlib import Path

import pytest

from bench import start
from config.schema import Config
from tests.runs import PRESET, arguments


def test_moments_are_those_of_the_lines(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "for said in ('model   a', 'other', 'step 0: val_loss 1', 'step 1: train_loss 1', 'step 10: train_loss 1'):\n"
        "    time.sleep(0.05)\n"
        "    print(said, file=sys.stderr, flush=True)\n"
    )
    row = start.timed([str(program)], str(tmp_path))
    assert 0 < row["first line"] < row["evaluated"] < row["first step"] < row["end"]
    assert math.isnan(row["compiled"])
    assert row["CPU"] >= 0
    program.write_text("raise SystemExit('no data')")
    with pytest.raises(RuntimeError, match="ended with 1: no data"):
        start.timed([str(program)], str(tmp_path))


def test_cold_and_warm_runs_take_turns(small: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train.py itself, uncompiled."""
    fields = arguments(small)
    for name in ("--out_dir", "--max_steps", "--log_interval"):
        at = fields.index(name)
        del fields[at : at + 2]
    own = ["--preset", PRESET, "--steps", "2", "--repeats", "1", "--json", str(tmp_path / "start.json")]
    assert start.main([*own, *fields]) == 0
    rows = json.loads((tmp_path / "start.json").read_text())["rows"]
    assert [row["cache"] for row in rows] == ["cold", "warm"]
    assert all(0 < row["first line"] < row["evaluated"] < row["first step"] < row["end"] for row in rows)
    assert capsys.readouterr().out.count("median") == 2
