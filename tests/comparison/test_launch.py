"""Jobs are processes: each is reported, gets its share, and is stopped with us; through submitit's local executor too."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from comparison import launch
from comparison.plan import Job, plan

TINY = Path(__file__).parents[2] / "config" / "tiny.py"


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    sweep = plan(TINY, ["gelu", "relu", "silu"], 1, {}, tmp_path / "out")
    return sweep.jobs(sweep.seeds, ())


# A worker without PyTorch: its jobs are a script, which sees the job's arguments.
WORKER = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    order = json.loads(line)
    for stream in (1, 2):
        os.dup2(os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
    sys.argv = ["script", *order["arguments"]]
    exec(compile(open(SCRIPT).read(), SCRIPT, "exec"), {"__file__": SCRIPT, "order": order})
    sys.stdout.flush()
    print("done", file=answers, flush=True)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Python code that stands for a run; what it raises ends its worker."""
    path, worker, starter = tmp_path / "script.py", tmp_path / "worker.py", tmp_path / "starter"
    worker.write_text(f"SCRIPT = {str(path)!r}\n{WORKER}")
    starter.write_text(f"#!/bin/sh\nexec {sys.executable} -u {worker}\n")
    starter.chmod(0o755)
    monkeypatch.setattr(launch.sys, "executable", str(starter))
    return path


def test_each_job_is_reported_with_its_exit_code_and_last_line(tmp_path: Path, jobs: list[Job], script: Path) -> None:
    script.write_text("import sys; word = sys.argv[3]; print('trained', word); print(); sys.exit(len(word.split(':')[0]))")
    seen: dict[str, tuple[int, str]] = {}
    launch.side_by_side(2, tmp_path / "logs")(
        jobs, lambda job, code, said: seen.update({job.name: (code, said)}), lambda running: None
    )
    assert seen == {
        "gelu-seed=1337": (4, "trained gelu:exact=false"),
        "relu-seed=1337": (4, "trained relu"),
        "silu-seed=1337": (4, "trained silu"),
    }


def test_a_worker_trains_job_after_job_and_one_that_dies_is_replaced(tmp_path: Path, jobs: list[Job], script: Path) -> None:
    """Each job's words are in its own log, whatever became of the job before it."""
    script.write_text(
        "import os, signal\nprint('in process', os.getpid(), flush=True)\n"
        "if sys.argv[3] == 'relu': os.kill(os.getpid(), signal.SIGKILL)\n".replace("import os,", "import os, sys,")
    )
    codes: dict[str, int] = {}
    done = lambda job, code, said: codes.update({job.arm: code})  # noqa: E731
    again = [replace(job, name=f"{job.name}-again") for job in jobs]
    launch.side_by_side(1, tmp_path / "logs")([jobs[0], again[0], jobs[1], jobs[2], again[2]], done, lambda running: None)
    assert codes == {"gelu": 0, "relu": -signal.SIGKILL, "silu": 0}
    said = {path.stem: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert len(said) == 5
    assert all(text.count("in process") == 1 for text in said.values())
    assert said["gelu-seed=1337"] == said["gelu-seed=1337-again"] == said["relu-seed=1337"]
    assert said["silu-seed=1337"] == said["silu-seed=1337-again"] != said["gelu-seed=1337"]


def test_a_worker_that_dies_between_two_jobs_costs_no_more_than_one(tmp_path: Path, jobs: list[Job], script: Path) -> None:
    script.write_text("import os, threading; threading.Timer(0.05, os._exit, [3]).start()")
    codes = []
    launch.side_by_side(1, tmp_path / "logs")(jobs, lambda job, code, said: codes.append(code), lambda running: None)
    assert len(codes) == len(jobs)
    assert set(codes) <= {0, 3}


def test_a_worker_keeps_the_graphs_of_a_bounded_number_of_shapes(
    tmp_path: Path, jobs: list[Job], script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes jobs of the same seed whose graphs it has first."""
    monkeypatch.setattr(launch, "_SHAPES", 2)
    script.write_text("print(order['forgets_graphs'])")
    later = [replace(job, name=f"{job.name}-later") for job in jobs]
    told: list[tuple[str, str]] = []
    launch.side_by_side(1, tmp_path / "logs")(
        [*jobs, *later], lambda job, code, said: told.append((job.name, said)), lambda running: None
    )
    assert told == [
        ("gelu-seed=1337", "False"),
        ("gelu-seed=1337-later", "False"),
        ("relu-seed=1337", "False"),
        ("relu-seed=1337-later", "False"),
        ("silu-seed=1337", "True"),
        ("silu-seed=1337-later", "False"),
    ]


def test_paired_runs_stay_together_whatever_is_compiled(jobs: list[Job]) -> None:
    other = [replace(job, config=replace(job.config, seed=1338)) for job in jobs]
    waiting = [*jobs[1:], *other]
    assert launch.take(waiting, {jobs[0].shape}) == jobs[1]
    assert waiting == [jobs[2], *other]


def test_what_decides_the_graphs_is_the_shape_of_a_job(jobs: list[Job]) -> None:
    same = {"seed": 7, "learning_rate": 1e-3, "max_steps": 7, "out_dir": "elsewhere"}
    assert all(replace(jobs[0], config=replace(jobs[0].config, **{k: v})).shape == jobs[0].shape for k, v in same.items())
    others = {"n_embd": 96, "micro_batch_size": 1, "dtype": "float32", "data_dir": "other", "activation": "relu"}
    assert all(replace(jobs[0], config=replace(jobs[0].config, **{k: v})).shape != jobs[0].shape for k, v in others.items())


def test_no_more_than_the_slots_run_at_once(tmp_path: Path, jobs: list[Job], script: Path) -> None:
    script.write_text("import time; time.sleep(0.5)")
    most = 0

    def tick(running: object) -> None:
        nonlocal most
        most = max(most, len(list(running)))  # type: ignore[call-overload]

    launch.side_by_side(2, tmp_path / "logs")(jobs, lambda *what: None, tick)
    assert most == 2


def test_each_slot_gets_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.share(0, 1) == {}
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert launch.share(1, 3) == {"OMP_NUM_THREADS": "2"}
    assert launch.share(0, 100) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [launch.share(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert launch.share(1, 2) == {"CUDA_VISIBLE_DEVICES": "7"}


def test_a_stop_signal_is_passed_on_and_waited_for(tmp_path: Path, jobs: list[Job], script: Path) -> None:
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_): time.sleep(0.3); pathlib.Path(__file__).with_name('saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); pathlib.Path(__file__).with_name('ready').touch(); time.sleep(60)\n"
    )

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(launch.SweepInterruptedError) as stopped:
        launch.side_by_side(1, tmp_path / "logs")(jobs[:1], lambda *what: None, lambda running: None)
    assert stopped.value.exit_code == 143
    assert (tmp_path / "saved").exists()


def test_an_exception_of_done_stops_the_others(tmp_path: Path, jobs: list[Job], script: Path) -> None:
    script.write_text("import sys, time; time.sleep(0 if sys.argv[3].startswith('gelu') else 60)")

    def done(job: Job, code: int, said: str) -> None:
        raise ValueError(job.name)

    started = time.monotonic()
    with pytest.raises(ValueError, match="gelu"):
        launch.side_by_side(2, tmp_path / "logs")(jobs, done, lambda running: None)
    assert time.monotonic() - started < 50


def test_without_torchrun_there_is_one_rank_and_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launch.join_torchrun() == 0
    launch.dismiss()
    assert not launch.dist.is_initialized()


TINY = Path(__file__).parents[2] / "config" / "tiny.py"


def test_parameters() -> None:
    assert launch.slurm_parameters(["timeout_min=60", "slurm_partition=gpu"]) == {"timeout_min": 60, "slurm_partition": "gpu"}
    with pytest.raises(ValueError, match="--slurm 'gpu' is not KEY=VALUE"):
        launch.slurm_parameters(["gpu"])


def test_a_job_is_reported_with_its_exit_code_and_last_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="submitit is in requirements-dev.txt")
    sweep = plan(TINY, ["gelu"], 1, {"data_dir": str(tmp_path / "none")}, tmp_path / "out")
    reported: list[tuple[Job, int, str]] = []
    start = launch.slurm_array(2, tmp_path / "logs", {"timeout_min": 5}, cluster="local")
    start(sweep.jobs(sweep.seeds, ()), lambda *what: reported.append(what), lambda running: None)
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
        launch.slurm_array(2, tmp_path / "logs", parameters)(
            sweep.jobs(sweep.seeds, ()), lambda *what: None, lambda running: None
        )


def test_a_preempted_task_is_queued_again_as_it_was(tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit", reason="submitit is in requirements-dev.txt")
    task = launch.Task(("config/tiny.py",), tmp_path / "log")
    again = task.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function == task
