"""Jobs go through submitit, here with its local executor, which starts real processes."""

import os
from pathlib import Path

import pytest

from comparison import slurm
from comparison.sweep import Job, plan

TINY = Path(__file__).parents[2] / "config" / "tiny.py"


def test_parameters() -> None:
    assert slurm.parameters(["timeout_min=60", "slurm_partition=gpu"]) == {"timeout_min": 60, "slurm_partition": "gpu"}
    with pytest.raises(ValueError, match="--slurm 'gpu' is not KEY=VALUE"):
        slurm.parameters(["gpu"])


def test_a_job_is_reported_with_its_exit_code_and_last_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is in requirements-dev.txt")
    sweep = plan(TINY, ["gelu"], 1, {"data_dir": str(tmp_path / "none")}, tmp_path / "out")
    reported: list[tuple[Job, int, str]] = []
    launch = slurm.array(2, tmp_path / "logs", {"timeout_min": 5}, cluster="local")
    launch(sweep.jobs(sweep.seeds, ()), lambda *what: reported.append(what), lambda running: None)
    ((job, code, said),) = reported
    assert (job.name, code) == ("gelu-seed=1337", 2)
    assert "does not exist" in said


@pytest.mark.parametrize("parameters", [{}, {"slurm_colour": "red"}, {"timeout_min": "soon"}])
def test_jobs_that_cannot_be_submitted_are_one_line(
    tmp_path: Path, parameters: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="submitit is in requirements-dev.txt")
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    (sbatch.parent / "srun").symlink_to(sbatch)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=os.pathsep)
    sweep = plan(TINY, ["gelu"], 1, {}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"^the jobs cannot be submitted \(.+\); put --slurm KEY=VALUE right"):
        slurm.array(2, tmp_path / "logs", parameters)(sweep.jobs(sweep.seeds, ()), lambda *what: None, lambda running: None)


def test_a_preempted_task_is_queued_again_as_it_was(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit", reason="submitit is in requirements-dev.txt")
    task = slurm.Task(("config/tiny.py",), tmp_path / "log")
    again = task.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == task
