"""Lines that say how each run went and how long the rest takes."""

import re
from pathlib import Path
from typing import Any

import pytest

from comparison import progress
from comparison.progress import Progress, steps_done
from comparison.sweep import plan

TINY = Path(__file__).parents[2] / "config" / "tiny.py"


def test_steps_are_read_from_the_metrics_and_the_time_left_follows(
    finish_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    sweep = plan(TINY, ["gelu", "relu"], 2, {}, tmp_path)
    jobs = sweep.jobs(sweep.seeds, ())
    with Progress(jobs) as bar:
        assert steps_done(jobs[0]) == 0
        finish_run(jobs[0].config, 1.5)
        assert steps_done(jobs[0]) == jobs[0].config.max_steps
        clock[0] = 60.0
        bar.tick(jobs[:1])
        bar.finished(jobs[0], "val_loss 1.5")
        clock[0] = 100.0
        for job in jobs[1:]:
            bar.finished(job, "val_loss 1.6")
    lines = [line.strip() for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.startswith("[")]
    assert lines[0] == "[1/4] gelu-seed=1337: val_loss 1.5; about 3 min left"
    assert lines[1] == "[2/4] relu-seed=1337: val_loss 1.6; about 2 min left"
    assert lines[3] == "[4/4] relu-seed=1338: val_loss 1.6"
